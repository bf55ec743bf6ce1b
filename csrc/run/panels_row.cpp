// One rounded row times panels. The memory's bandwidth bounds it, so words are unpacked in registers.
#include <algorithm>

#include "dot.h"
#include "products.h"
#include "types.h"

namespace bitsmith::BITSMITH_ISA {
namespace {

constexpr int kGroups = kPanelRows / kLanes;  // vectors that hold a value of each row of a panel
constexpr int kAhead = 16384;                 // bytes of words fetched ahead

BITSMITH_INLINE int32_t four(const int8_t *codes) {
  int32_t x;
  std::memcpy(&x, codes, 4);
  return x;
}

template <class T>
BITSMITH_INLINE Ints start(int32_t negated) {
  if constexpr (T::kZero < 0 || (T::kWide && !kWideAsTheyAre))
    return Ints{};
  else
    return splat(negated * (1 << T::kZero));
}

// Products of a run, of the columns from 4 * first up to 4 * last.
template <class T>
BITSMITH_INLINE Ints dot(Ints acc, const uint8_t *p, int run, const FineBlock &x, int first, int last) {
  Ints upper{};
#pragma GCC unroll kUnrolled
  for (int j = first; j < last; ++j) {
    const Words codes = T::codes(p, run, j);
    upper = dot4<T::kWide>(upper, codes, four(x.upper + 4 * j));
    acc = dot4<T::kWide>(acc, codes, four(x.lower + 4 * j));
  }
  return acc + (upper << 7);
}

// What one block of kLanes rows adds to each row's sum. x: the inputs of its runs.
template <class T>
BITSMITH_INLINE Floats block(const uint8_t *p, const uint8_t *half, const FineBlock *x) {
  constexpr int kRuns = layout_of(T::kType).weights / 32;
  Floats total{}, low{};
#pragma GCC unroll kUnrolled
  for (int run = 0; run < kRuns; ++run) {
    const FineBlock &in = x[run];
    const Floats scale = splat(in.scale);
    if constexpr (kRuns == 1) {
      total = convert<Floats>(dot<T>(start<T>(in.negated), p, 0, in, 0, 8)) * scale;
      if constexpr (T::kAffine) low = splat(in.sum);
    } else if constexpr (T::kSub == 32) {
      const Floats sum = convert<Floats>(dot<T>(start<T>(in.negated), p, run, in, 0, 8));
      total = fma(sum, convert<Floats>(T::scale(p, run)) * scale, total);
      if constexpr (T::kAffine) low = fma(convert<Floats>(T::mins(p, run)), splat(in.sum), low);
    } else {
      const Ints a = dot<T>(start<T>(in.negated_16[0]), p, run, in, 0, 4);
      const Ints b = dot<T>(start<T>(in.negated_16[1]), p, run, in, 4, 8);
      const Floats sum = fma(convert<Floats>(a), convert<Floats>(T::scale(p, 2 * run)),
                             convert<Floats>(b) * convert<Floats>(T::scale(p, 2 * run + 1)));
      total = fma(sum, scale, total);
      if constexpr (T::kAffine) {
        low = fma(convert<Floats>(T::mins(p, 2 * run)), splat(in.halves[0]), low);
        low = fma(convert<Floats>(T::mins(p, 2 * run + 1)), splat(in.halves[1]), low);
      }
    }
  }
  total *= T::d(p, half);
  if constexpr (T::kAffine) total -= T::dmin(p) * low;
  return total;
}

template <class T>
void rows_of(const PanelRows &w, int first, int count, const FineBlock *x, float *y) {
  constexpr BlockLayout layout = layout_of(T::kType);
  const int blocks = w.blocks();
  const size_t bytes = w.panel_bytes();
  const size_t ahead = std::min<size_t>(kAhead, count * bytes);
  for (size_t at = 0; at < ahead; at += 64) __builtin_prefetch(w.data + first * bytes + at);
  for (int panel = 0; panel < count; ++panel) {
    const uint8_t *p = w.data + (first + panel) * bytes;
    const uint8_t *half = p + static_cast<size_t>(blocks) * layout.words * 64;
    Floats sums[kGroups] = {};
    for (int at = 0; at < blocks; ++at) {
      // fetched by hand: words of a block are not read in order, and processors do not foresee that
      for (int word = 0; word < layout.words; ++word) __builtin_prefetch(p + kAhead + 64 * word);
#pragma GCC unroll kUnrolled
      for (int g = 0; g < kGroups; ++g)
        sums[g] += block<T>(p + 4 * kLanes * g, half + 2 * kLanes * g, x + at * (layout.weights / 32));
      p += layout.words * 64;
      if (layout.half != Half::none) half += 2 * kPanelRows;
    }
    for (int g = 0; g < kGroups; ++g) store(y + kPanelRows * panel + kLanes * g, sums[g]);
  }
}

}  // namespace

void panels_row(const PanelRows &w, int first, int count, const FineBlock *x, float *y) {
  with_type(w.type, [&](auto type) { rows_of<decltype(type)>(w, first, count, x, y); });
}

}  // namespace bitsmith::BITSMITH_ISA
