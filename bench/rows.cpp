// How many gigabytes a second one row times a matrix takes in, by type: from the cache, or from memory.
//
//   g++ -O3 -std=c++17 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wno-psabi -w -Icsrc \
//       -DBITSMITH_ISA=avx512bf16 -mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512dq -mavx512vl \
//       -mavx512vnni -mavx512bf16 -mprefer-vector-width=512 bench/rows.cpp -o rows
//   ./rows 2 1500       (megabytes, repeats; 2 MB stay in the cache, 800 come from memory)
//
// One thread; the best of the repeats. Build the same file in two checkouts and run them in turns to compare.
#include "run/rows.cpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "run/panels_row.cpp"

using namespace bitsmith;
using namespace bitsmith::BITSMITH_ISA;

int main(int argc, char **argv) {
  constexpr int kCols = 2048;
  if (argc != 3) return std::puts("usage: rows MEGABYTES REPEATS"), 2;
  const size_t bytes = static_cast<size_t>(std::atoi(argv[1])) << 20;
  std::mt19937 random(1);
  std::vector<uint32_t> words(bytes / 4 + 16384);                            // the rest is fetched ahead
  for (uint32_t &word : words) word = (random() & 0x03ff03ff) | 0x38003800;  // float16 of ordinary size
  std::vector<float> x(kCols);
  for (float &value : x) value = static_cast<float>(random() % 1000) / 500 - 1;
  std::vector<FineBlock> blocks(kCols / 32);
  std::vector<FineSums> sums(kCols / 256);
  round_fine(x.data(), kCols, blocks.data(), sums.data());
  for (int type = 0; type < kPanelTypes; ++type) {
    const PanelRows w{static_cast<PanelType>(type), reinterpret_cast<const uint8_t *>(words.data()), kCols};
    const int panels = static_cast<int>(bytes / w.panel_bytes());
    std::vector<float> y(static_cast<size_t>(panels) * kPanelRows);
    double best = 1e9;
    for (int repeat = 0; repeat < std::atoi(argv[2]); ++repeat) {
      const auto start = std::chrono::steady_clock::now();
      panels_row(w, 0, panels, {blocks.data(), sums.data()}, y.data());
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    std::printf("%-10s %6.2f GB/s\n", layout_of(w.type).name,
                panels * static_cast<double>(w.panel_bytes()) / best / 1e9);
  }
}
