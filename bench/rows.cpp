// How many gigabytes a second one row times a matrix takes in, by type: from the cache, or from memory; and how many
// reading alone takes in, the two in turns.
//
//   g++ -O3 -std=c++17 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wno-psabi -w -Icsrc \
//       -pthread -DBITSMITH_ISA=avx512bf16 -mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512dq -mavx512vl \
//       -mavx512vnni -mavx512vbmi -mavx512bf16 -mprefer-vector-width=512 bench/rows.cpp -o rows
//   ./rows 1 1500 iq3_xxs,iq3_s   (megabytes, repeats, types or all; 1 MB stays in the cache, 800 come from memory)
//   ./rows 800 21 all 2           (two threads)
//
// The best of the repeats and of the ways to read (run/reading.h). Build the same file in two checkouts and run them in
// turns to compare. One thread, in the processor's time, so that other programs count little; or, by a fourth argument,
// as many as it says, each with its own part of the matrix, in seconds of the clock: generation uses all threads, and
// they share the memory's bandwidth.
#include "run/rows.cpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "run/buffer.h"
#include "run/panels_row.cpp"
#include "run/read.cpp"
#include "run/reading.h"
#include "run/repack.cpp"

using namespace bitsmith;
using namespace bitsmith::BITSMITH_ISA;

namespace {

// Seconds that call(thread) takes for all threads, which begin together: of the processor for one, else of the clock.
template <class Call>
double seconds(int threads, const Call &call) {
  if (threads == 1) {
    const std::clock_t start = std::clock();
    call(0);
    return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  }
  using Clock = std::chrono::steady_clock;
  std::atomic<int> waiting{threads};
  std::vector<Clock::time_point> starts(threads), ends(threads);
  std::vector<std::thread> all;
  for (int i = 0; i < threads; ++i)
    all.emplace_back([&, i] {
      for (--waiting; waiting > 0;) {
      }
      starts[i] = Clock::now();
      call(i);
      ends[i] = Clock::now();
    });
  for (std::thread &thread : all) thread.join();
  const auto first = *std::min_element(starts.begin(), starts.end());
  return std::chrono::duration<double>(*std::max_element(ends.begin(), ends.end()) - first).count();
}

}  // namespace

int main(int argc, char **argv) {
  constexpr int kCols = 2048;
  if (argc < 3) return std::puts("usage: rows MEGABYTES REPEATS [TYPE,.. or all [THREADS]]"), 2;
  const size_t bytes = static_cast<size_t>(std::atoi(argv[1])) << 20;
  const int repeats = std::atoi(argv[2]);
  const std::string wanted = argc > 3 && std::string(argv[3]) != "all" ? "," + std::string(argv[3]) + "," : "";
  const int threads = argc > 4 ? std::max(1, std::atoi(argv[4])) : 1;
  std::mt19937 random(1);
  std::vector<uint32_t> words(bytes / 4 + 16384);                            // the rest is fetched ahead
  for (uint32_t &word : words) word = (random() & 0x03ff03ff) | 0x38003800;  // float16 of ordinary size
  std::vector<float> x(kCols);
  for (float &value : x) value = static_cast<float>(random() % 1000) / 500 - 1;
  std::vector<FineBlock> blocks(kCols / 32);
  std::vector<FineSums> sums(kCols / 256);
  round_fine(x.data(), kCols, blocks.data(), sums.data());
  std::vector<uint64_t> totals(8 * threads);
  for (int type = 0; type < kPanelTypes; ++type) {
    const std::string name = kBlocks[type].name;
    if (!wanted.empty() && wanted.find("," + name + ",") == std::string::npos) continue;
    Buffer own(4 * words.size());  // in large pages, as the weights of a model
    uint8_t *data = own.data();
    std::memcpy(data, words.data(), own.size());
    const PanelRows w{static_cast<PanelType>(type), data, kCols};
    const int part = static_cast<int>(bytes / w.panel_bytes() / threads), panels = part * threads;
    const size_t share = part * w.panel_bytes(), size = share * threads;
    for (int panel = 0; panel < panels; ++panel) repack(w.type, w.blocks(), data + panel * w.panel_bytes());
    std::vector<float> y(static_cast<size_t>(panels) * kPanelRows);
    double reads = 1e9, product = 1e9;
    for (int repeat = 0; repeat < repeats; ++repeat) {
      const Reading &reading = kReadings[repeat % std::size(kReadings)];
      reads = std::min(reads, seconds(threads, [&](int thread) {
                         totals[8 * thread] += read(data + thread * share, share, reading);
                       }));
      product = std::min(product, seconds(threads, [&](int thread) {
                           float *out = y.data() + static_cast<size_t>(thread) * part * kPanelRows;
                           panels_row(w, thread * part, part, {blocks.data(), sums.data()}, reading, out);
                         }));
    }
    const double weights = static_cast<double>(panels) * kPanelRows * kCols;
    std::printf("%-10s %6.2f GB/s, reading %6.2f: %.2f; %.3f ns for 16 weights\n", name.c_str(), size / product / 1e9,
                size / reads / 1e9, reads / product, 16e9 * product / weights);
  }
  return totals[0] ? 0 : 1;  // so that reading is not optimised away
}
