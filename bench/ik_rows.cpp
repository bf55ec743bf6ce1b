// The same as rows.cpp of ik_llama.cpp's product of one row, its own interleaved types ("iq3_xxs_r4") too.
//
//   cmake -S ik_llama.cpp/ggml -B ik -DCMAKE_BUILD_TYPE=Release -DGGML_OPENMP=OFF -DCMAKE_CXX_STANDARD=20
//   cmake --build ik --target ggml
//   g++ -O2 -std=c++17 -Iik_llama.cpp/ggml/include -Iik_llama.cpp/ggml/src bench/ik_rows.cpp ik/src/libggml.so \
//       -Wl,-rpath,$PWD/ik/src -o ik_rows
//   ./ik_rows 1 1500 iq3_xxs,iq3_xxs_r4   (megabytes, repeats, types or all)
//
// One thread, in the processor's time; the best of the repeats. Inputs are rounded before.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <string>
#include <vector>

#include "ggml.h"
#include "iqk/iqk_mul_mat.h"

int main(int argc, char **argv) {
  constexpr int kCols = 2048;
  if (argc != 4) return std::puts("usage: ik_rows MEGABYTES REPEATS TYPES"), 2;
  const size_t bytes = static_cast<size_t>(std::atoi(argv[1])) << 20;
  const std::string wanted = "," + std::string(argv[3]) + ",";
  ggml_free(ggml_init({1024, nullptr, false}));  // makes its tables
  std::mt19937 random(1);
  std::vector<uint32_t> words(bytes / 4 + 16384);
  for (uint32_t &word : words) word = (random() & 0x03ff03ff) | 0x38003800;  // as in rows.cpp
  std::vector<float> x(kCols), y(bytes / 256);
  for (float &value : x) value = static_cast<float>(random() % 1000) / 500 - 1;
  for (int number = 0; number < GGML_TYPE_COUNT; ++number) {
    const auto type = static_cast<ggml_type>(number);
    const ggml_type_traits_t traits = ggml_internal_get_type_traits(type);
    if (!traits.type_name || !traits.is_quantized || !traits.blck_size) continue;
    if (wanted != ",all," && wanted.find("," + std::string(traits.type_name) + ",") == std::string::npos) continue;
    const size_t row = ggml_row_size(type, kCols);
    const int rows = static_cast<int>(bytes / row) / 16 * 16;
    const ggml_type_traits_t input = ggml_internal_get_type_traits(traits.vec_dot_type);
    std::vector<uint8_t> rounded(4 * ggml_row_size(traits.vec_dot_type, kCols));
    input.from_float(x.data(), rounded.data(), kCols);
    double best = 1e9;
    bool known = true;
    for (int repeat = 0; known && repeat < std::atoi(argv[2]); ++repeat) {
      const std::clock_t start = std::clock();
      known = iqk_mul_mat(rows, 1, kCols, type, words.data(), row, traits.vec_dot_type, rounded.data(),
                          ggml_row_size(traits.vec_dot_type, kCols), y.data(), rows, 0, 1);
      best = std::min(best, static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
    }
    if (!known) {
      std::printf("%-12s no product of one row\n", traits.type_name);
      continue;
    }
    std::printf("%-12s %6.2f GB/s; %.3f ns for 16 weights\n", traits.type_name, rows * row / best / 1e9,
                16e9 * best / rows / kCols);
  }
}
