// One rounded row times panels. The memory's bandwidth bounds it, so words are unpacked in registers.
#include <algorithm>

#include "book_planes.h"
#include "fine.h"

namespace bitsmith::BITSMITH_ISA {
namespace {

// Products of a run, or of one half of it. planes: the inputs, where the type has planes
template <class T>
BITSMITH_INLINE Floats products(const uint8_t *p, int run, const FineBlock &in, const PlaneBlock *planes) {
  const Ints begin = start<T>(in.negated, lift<T>(run));
  if constexpr (Planes<T>::kThere) {
    Words found[8];
    Planes<T>::find(p, run, found);
    return convert<Floats>(dot_planes(begin, found, planes[run], 0, 8));
  } else {
    static_cast<void>(planes);
    return convert<Floats>(dot<T>(begin, p, run, in, 0, 8));
  }
}

template <class T>
BITSMITH_INLINE void half_products(const uint8_t *p, int run, const FineBlock &in, const PlaneBlock *planes,
                                   Floats (&out)[2]) {
  const int lifted = lift<T>(run);
  if constexpr (Planes<T>::kThere) {
    Words found[8];
    Planes<T>::find(p, run, found);
    for (int i = 0; i < 2; ++i)
      out[i] = convert<Floats>(dot_planes(start<T>(in.negated_16[i], lifted), found, planes[run], 4 * i, 4 * i + 4));
  } else {
    static_cast<void>(planes);
    for (int i = 0; i < 2; ++i)
      out[i] = convert<Floats>(dot<T>(start<T>(in.negated_16[i], lifted), p, run, in, 4 * i, 4 * i + 4));
  }
}

// What one block of kLanes rows, whose sub-blocks have scales, adds to each row's sum. sums: those of the block's 256
// columns; group: of its rows in their panel
template <class T>
BITSMITH_INLINE Floats scaled_block(const uint8_t *p, const uint8_t *half, const FineBlock *x, const FineSums *sums,
                                    const PlaneBlock *planes, const Ahead &ahead, int group) {
  constexpr int kRuns = layout_of(T::kType).weights / 32;
  Floats totals[8] = {};  // of the runs of each lift
#pragma GCC unroll kUnrolled
  for (int run = 0; run < kRuns; ++run) {
    fetch<layout_of(T::kType).words>(ahead, kRuns * group + run, kRuns * kVectors);
    const FineBlock &in = x[run];
    Floats &total = totals[lift<T>(run)];
    if constexpr (T::kSub == 32) {
      const Floats sum = products<T>(p, run, in, planes);
      total = fma(sum, sub_scale<T>(p, run) * input_scale<T>(in), total);
    } else {
      Floats halves[2];
      half_products<T>(p, run, in, planes, halves);
      const Floats sum = fma(halves[0], sub_scale<T>(p, 2 * run), halves[1] * sub_scale<T>(p, 2 * run + 1));
      total = fma(sum, input_scale<T>(in), total);
    }
  }
#pragma GCC unroll kUnrolled
  for (int lifted = 1; lifted < 8; ++lifted)
    if (has_lift<T>(lifted)) totals[0] = fma(totals[lifted], splat(1.0f / (1 << lifted)), totals[0]);
  Floats total = totals[0] * rest_of_scale<T>(p, half);
  if constexpr (T::kAffine) total -= T::dmin(p) * lows<T>(p, *sums);
  return total;
}

// The same without such scales.
template <class T>
BITSMITH_INLINE Floats plain_block(const uint8_t *p, const uint8_t *half, const FineBlock *x, const Ahead &ahead,
                                   int group) {
  constexpr int kRuns = layout_of(T::kType).weights / 32;
  Floats total{};
  float low = 0;
#pragma GCC unroll kUnrolled
  for (int run = 0; run < kRuns; ++run) {
    fetch<layout_of(T::kType).words>(ahead, kRuns * group + run, kRuns * kVectors);
    const FineBlock &in = x[run];
    total = fma(convert<Floats>(dot<T>(start<T>(in.negated, 0), p, run, in, 0, 8)), splat(in.scale), total);
    low += in.sum;
  }
  total *= T::d(p, half);
  if constexpr (T::kAffine) total -= T::dmin(p) * splat(low);
  return total;
}

template <class T>
void rows_of(const PanelRows &w, int first, int count, const FineRow &x, const Reading &reading, float *y) {
  constexpr BlockLayout layout = layout_of(T::kType);
  const int blocks = w.blocks();
  const size_t bytes = w.panel_bytes();
  PlaneBlock *planes = nullptr;
  if constexpr (Planes<T>::kThere) {
    const int runs = blocks * (layout.weights / 32);
    planes = scratch<PlaneBlock, 15>(runs);
    to_planes<T>(x.blocks, runs, planes);
  }
  const size_t begin = std::min<size_t>(reading.far, count * bytes);
  for (size_t at = 0; at < begin; at += 64) __builtin_prefetch(w.data + first * bytes + at, 0, 2);
  for (int panel = 0; panel < count; ++panel) {
    const uint8_t *p = w.data + (first + panel) * bytes;
    const uint8_t *half = p + static_cast<size_t>(blocks) * layout.words * 64;
    Floats sums[kVectors] = {};
    for (int at = 0; at < blocks; ++at) {
      const Ahead ahead{p + reading.near, p + reading.far};
#pragma GCC unroll kUnrolled
      for (int g = 0; g < kVectors; ++g) {
        const uint8_t *words = p + 4 * kLanes * g, *halves = half + 2 * kLanes * g;
        const FineBlock *in = x.blocks + at * (layout.weights / 32);
        if constexpr (kScaled<T>)
          sums[g] += scaled_block<T>(words, halves, in, x.sums + at,
                                     planes ? planes + at * (layout.weights / 32) : nullptr, ahead, g);
        else
          sums[g] += plain_block<T>(words, halves, in, ahead, g);
      }
      p += layout.words * 64;
      if (layout.half != Half::none) half += 2 * kPanelRows;
    }
    for (int g = 0; g < kVectors; ++g) store(y + kPanelRows * panel + kLanes * g, sums[g]);
  }
}

}  // namespace

void panels_row(const PanelRows &w, int first, int count, const FineRow &x, const Reading &reading, float *y) {
  with_type(w.type, [&](auto type) { rows_of<decltype(type)>(w, first, count, x, reading, y); });
}

}  // namespace bitsmith::BITSMITH_ISA
