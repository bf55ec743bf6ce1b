// Reads memory and does nothing else: what a product with a single row cannot surpass.
#include "products.h"

namespace bitsmith::BITSMITH_ISA {

uint64_t read(const uint8_t *from, size_t bytes, const Reading &reading) {
  Words sums[4] = {};
  constexpr size_t kStep = sizeof sums;
  const auto pass = [&](auto fetched) {
    for (size_t at = 0; at + kStep <= bytes; at += kStep) {
#pragma GCC unroll 4
      for (size_t line = 0; decltype(fetched)::value && line < kStep; line += 64) {
        __builtin_prefetch(from + at + reading.near + line, 0, 3);
        __builtin_prefetch(from + at + reading.far + line, 0, 2);
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[i] += load<Words>(from + at + i * sizeof(Words));
    }
  };
  if (reading.far > 0)
    pass(std::true_type{});
  else
    pass(std::false_type{});
  const Words all = sums[0] + sums[1] + sums[2] + sums[3];
  uint64_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += all[i];
  return total;
}

}  // namespace bitsmith::BITSMITH_ISA
