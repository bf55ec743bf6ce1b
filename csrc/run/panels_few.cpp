// A few rounded rows times panels. The words of a run are unpacked once, and stay in registers for all rows. Every row
// gives, bit for bit, what `panels_row` gives.
#include <algorithm>

#include "fine.h"

namespace bitsmith::BITSMITH_ISA {
namespace {

constexpr int kRows = 16;  // whose sums are kept at a time

// Sums of some rows, in the first-level cache. totals: of a block, apart for each lift
struct Sums16 {
  Floats sums[kRows][kVectors];
  Floats totals[8][kRows];
};

// The products of a run's words with one row, of the columns from 4 * first up to 4 * last.
template <class T>
BITSMITH_INLINE Floats product(Ints begin, const Words (&words)[8], const FineBlock &x, int first, int last) {
  Sums<T::kBits, T::kWide> upper, lower;
  lower.start(begin);
#pragma GCC unroll kUnrolled
  for (int j = first; j < last; ++j) {
    upper.add(words[j], four(x.upper + 4 * j), j, j + 1 == last);
    lower.add(words[j], four(x.lower + 4 * j), j, j + 1 == last);
  }
  return convert<Floats>(lower.total() + (upper.total() << 7));
}

// Adds one run of a block to the totals of `rows` rows.
template <class T, int run>
BITSMITH_INLINE void add_run(const uint8_t *p, const FineBlock *x, size_t stride, int rows, Floats *totals) {
  constexpr int lifted = lift<T>(run);
  Words words[8];
#pragma GCC unroll kUnrolled
  for (int j = 0; j < 8; ++j) words[j] = kLifts ? T::lifted(p, run, j) : codes<T>(p, run, j);
  if constexpr (!kScaled<T>) {
    for (int i = 0; i < rows; ++i) {
      const FineBlock &in = x[i * stride];
      totals[i] = fma(product<T>(start<T>(in.negated, 0), words, in, 0, 8), splat(in.scale), totals[i]);
    }
  } else if constexpr (T::kSub == 32) {
    const Floats scale = sub_scale<T>(p, run);
    for (int i = 0; i < rows; ++i) {
      const FineBlock &in = x[i * stride];
      const Floats sum = product<T>(start<T>(in.negated, lifted), words, in, 0, 8);
      totals[i] = fma(sum, scale * input_scale<T>(in), totals[i]);
    }
  } else {
    const Floats first = sub_scale<T>(p, 2 * run), second = sub_scale<T>(p, 2 * run + 1);
    for (int i = 0; i < rows; ++i) {
      const FineBlock &in = x[i * stride];
      const Floats a = product<T>(start<T>(in.negated_16[0], lifted), words, in, 0, 4),
                   b = product<T>(start<T>(in.negated_16[1], lifted), words, in, 4, 8);
      totals[i] = fma(fma(a, first, b * second), input_scale<T>(in), totals[i]);
    }
  }
}

template <class T, int run>
BITSMITH_INLINE void add_runs(const uint8_t *p, const FineBlock *x, size_t stride, int rows, Sums16 &to) {
  if constexpr (run < layout_of(T::kType).weights / 32) {
    add_run<T, run>(p, x + run, stride, rows, to.totals[lift<T>(run)]);
    add_runs<T, run + 1>(p, x, stride, rows, to);
  }
}

// The same of a block of one run without integer scales, added to the sums at once.
template <class T>
BITSMITH_INLINE void add_small_block(const uint8_t *p, const uint8_t *half, const FineRows &x, int at, int rows, int g,
                                     Sums16 &to) {
  Words words[8];
#pragma GCC unroll kUnrolled
  for (int j = 0; j < 8; ++j) words[j] = codes<T>(p, 0, j);
  const Floats d = T::d(p, half);
  Floats dmin{};
  if constexpr (T::kAffine) dmin = T::dmin(p);
  for (int i = 0; i < rows; ++i) {
    const FineBlock &in = x.blocks[i * x.block_stride + at];
    Floats total = product<T>(start<T>(in.negated, 0), words, in, 0, 8) * splat(in.scale) * d;
    if constexpr (T::kAffine) total -= dmin * splat(in.sum);
    to.sums[i][g] += total;
  }
}

// Adds one block of kLanes rows of the matrix, vector g of its panel, to the sums of `rows` rows.
template <class T>
BITSMITH_INLINE void add_block(const uint8_t *p, const uint8_t *half, const FineRows &x, int at, int rows, int g,
                               Sums16 &to) {
  constexpr int kRuns = layout_of(T::kType).weights / 32;
  for (int lifted = 0; lifted < 8; ++lifted)
    if (lifted == 0 || has_lift<T>(lifted)) std::fill(to.totals[lifted], to.totals[lifted] + rows, Floats{});
  const FineBlock *in = x.blocks + at * kRuns;
  add_runs<T, 0>(p, in, x.block_stride, rows, to);
  const Floats d = rest_of_scale<T>(p, half);
  Floats dmin{};
  if constexpr (T::kAffine) dmin = T::dmin(p);
  for (int i = 0; i < rows; ++i) {
    Floats total = to.totals[0][i];
#pragma GCC unroll kUnrolled
    for (int lifted = 1; lifted < 8; ++lifted)
      if (has_lift<T>(lifted)) total = fma(to.totals[lifted][i], splat(1.0f / (1 << lifted)), total);
    total *= d;
    if constexpr (T::kAffine && kScaled<T>) total -= dmin * lows<T>(p, x.sums[i * x.sum_stride + at]);
    if constexpr (T::kAffine && !kScaled<T>) {
      float low = 0;
      for (int run = 0; run < kRuns; ++run) low += in[i * x.block_stride + run].sum;
      total -= dmin * splat(low);
    }
    to.sums[i][g] += total;
  }
}

template <class T>
void few_of(const PanelRows &w, int first, int count, const FineRows &x, int rows, const Reading &reading, float *y,
            size_t stride) {
  constexpr BlockLayout layout = layout_of(T::kType);
  const int blocks = w.blocks();
  const size_t bytes = w.panel_bytes();
  for (int panel = 0; panel < count; ++panel) {
    const uint8_t *p = w.data + (first + panel) * bytes;
    const uint8_t *half = p + static_cast<size_t>(blocks) * layout.words * 64;
    Sums16 to;
    for (int i = 0; i < rows; ++i) std::fill(to.sums[i], to.sums[i] + kVectors, Floats{});
    for (int at = 0; at < blocks; ++at) {
      fetch<layout.words>({p + reading.near, p + reading.far}, 0, 1);
      for (int g = 0; g < kVectors; ++g) {
        const uint8_t *words = p + 4 * kLanes * g, *halves = half + 2 * kLanes * g;
        if constexpr (layout.weights == 32)
          add_small_block<T>(words, halves, x, at, rows, g, to);
        else
          add_block<T>(words, halves, x, at, rows, g, to);
      }
      p += layout.words * 64;
      if (layout.half != Half::none) half += 2 * kPanelRows;
    }
    for (int i = 0; i < rows; ++i)
      for (int g = 0; g < kVectors; ++g) store(y + i * stride + kPanelRows * panel + kLanes * g, to.sums[i][g]);
  }
}

}  // namespace

void panels_few(const PanelRows &w, int first, int count, const FineRows &x, int rows, const Reading &reading, float *y,
                size_t stride) {
  with_type(w.type, [&](auto type) {
    for (int i = 0; i < rows; i += kRows) {
      const FineRows part{x.blocks + i * x.block_stride, x.sums + i * x.sum_stride, x.block_stride, x.sum_stride};
      few_of<decltype(type)>(w, first, count, part, std::min(kRows, rows - i), reading, y + i * stride, stride);
    }
  });
}

}  // namespace bitsmith::BITSMITH_ISA
