// The same as rows.cpp of ggml's product of one row, by the shared object of the wheel xllamacpp.
//
//   g++ -O2 -std=c++17 bench/ggml_rows.cpp -ldl -o ggml_rows
//   ./ggml_rows xllamacpp.abi3.so nvfp4 36 64 1 1500   (type, bytes and weights of its block, megabytes, repeats)
//
// One thread, in the processor's time; the best of the repeats. Inputs are rounded to q8_0 before, as ggml does it.
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <string>
#include <vector>

int main(int argc, char **argv) {
  constexpr int kCols = 2048;
  if (argc != 7) return std::puts("usage: ggml_rows LIBRARY TYPE BYTES WEIGHTS MEGABYTES REPEATS"), 2;
  void *library = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
  if (!library) return std::puts(dlerror()), 1;
  using Dot = void (*)(int, float *, size_t, const void *, size_t, const void *, size_t, int);
  using Round = void (*)(const float *, void *, int64_t);
  const std::string type = argv[2],
                    name = "ggml_vec_dot_" + type + (type.find('k') == std::string::npos ? "_q8_0" : "_q8_K");
  const auto dot = reinterpret_cast<Dot>(dlsym(library, name.c_str()));
  const auto round = reinterpret_cast<Round>(dlsym(library, "quantize_row_q8_0"));
  const auto init = reinterpret_cast<void (*)()>(dlsym(library, "ggml_cpu_init"));
  if (!dot || !round || !init) return std::printf("no %s\n", name.c_str()), 1;
  init();
  const size_t row = kCols / std::atoi(argv[4]) * std::atoi(argv[3]);
  const int rows = static_cast<int>((static_cast<size_t>(std::atoi(argv[5])) << 20) / row);
  std::mt19937 random(1);
  std::vector<uint32_t> words(rows * row / 4 + 16);
  for (uint32_t &word : words) word = (random() & 0x03ff03ff) | 0x38003800;  // as in rows.cpp
  std::vector<float> x(kCols), y(rows);
  for (float &value : x) value = static_cast<float>(random() % 1000) / 500 - 1;
  std::vector<uint8_t> rounded(kCols / 32 * 34);
  round(x.data(), rounded.data(), kCols);
  double best = 1e9;
  for (int repeat = 0; repeat < std::atoi(argv[6]); ++repeat) {
    const std::clock_t start = std::clock();
    for (int i = 0; i < rows; ++i)
      dot(kCols, &y[i], 0, reinterpret_cast<const uint8_t *>(words.data()) + i * row, 0, rounded.data(), 0, 1);
    best = std::min(best, static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
  }
  std::printf("%-10s %6.2f GB/s; %.3f ns for 16 weights\n", type.c_str(), rows * row / best / 1e9,
              16e9 * best / rows / kCols);
}
