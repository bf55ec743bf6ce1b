// Many rows times panels. Arithmetic bounds it, so panels are unpacked once for all rows, into the first-level cache.
#include <algorithm>

#include "strips.h"

namespace bitsmith::BITSMITH_ISA {
namespace {

constexpr int kTile = 4;  // input rows whose sums stay in registers

// Products of P vectors of rows with R input rows, over `runs` runs of 32 columns. They are added to y, or replace it.
// x: the first run of the first input row; the next row is `blocks` further. strip: the second panel lies kDepth
// columns behind the first.
template <class K, int P, int R>
BITSMITH_INLINE void tile(const Strip &strip, const RoundedBlock *x, size_t blocks, int runs, int zero, bool add,
                          float *y, size_t stride) {
  constexpr int kSubs = 32 / K::kSub;
  Floats sums[R][P];
#pragma GCC unroll kUnrolled
  for (int i = 0; i < R; ++i)
    for (int p = 0; p < P; ++p) sums[i][p] = add ? load<Floats>(y + i * stride + kLanes * p) : Floats{};
  for (int run = 0; run < runs; ++run) {
    Words codes[P][8];
#pragma GCC unroll kUnrolled
    for (int p = 0; p < P; ++p)
#pragma GCC unroll kUnrolled
      for (int j = 0; j < 8; ++j) codes[p][j] = load<Words>(strip.codes + p * kDepth * 16 + (8 * run + j) * 64);
    const auto at = [&](const float *values, int p, int index) {
      return load<Floats>(values + p * kDepth + index * 16);
    };
#pragma GCC unroll kUnrolled
    for (int i = 0; i < R; ++i) {
      const RoundedBlock &in = x[i * blocks + run];
      const Floats scale = splat(in.scale);
      Sums<K::kBits, K::kWide> dots[P][kSubs];
#pragma GCC unroll kUnrolled
      for (int s = 0; s < kSubs; ++s) {
        Ints begin{};
        if constexpr (K::kCorrected) begin = splat(kSubs == 1 ? in.negated : in.negated_16[s]) << zero;
#pragma GCC unroll kUnrolled
        for (int p = 0; p < P; ++p) dots[p][s].start(begin);
      }
#pragma GCC unroll kUnrolled
      for (int j = 0; j < 8; ++j) {
        int32_t four;
        std::memcpy(&four, in.codes + 4 * j, 4);
#pragma GCC unroll kUnrolled
        for (int p = 0; p < P; ++p) dots[p][j / (8 / kSubs)].add(codes[p][j], four, j, (j + 1) % (8 / kSubs) == 0);
      }
#pragma GCC unroll kUnrolled
      for (int p = 0; p < P; ++p) {
        if constexpr (kSubs == 1) {
          sums[i][p] = fma(convert<Floats>(dots[p][0].total()), at(strip.scales, p, run) * scale, sums[i][p]);
        } else {
          const Floats first = convert<Floats>(dots[p][0].total()) * at(strip.scales, p, 2 * run);
          sums[i][p] =
              fma(fma(convert<Floats>(dots[p][1].total()), at(strip.scales, p, 2 * run + 1), first), scale, sums[i][p]);
        }
        if constexpr (K::kAffine && K::kLowSub == 32)
          sums[i][p] = fma(at(strip.lows, p, run), splat(-in.sum), sums[i][p]);
        if constexpr (K::kAffine && K::kLowSub == 16) {
          sums[i][p] = fma(at(strip.lows, p, 2 * run), splat(-in.halves[0]), sums[i][p]);
          sums[i][p] = fma(at(strip.lows, p, 2 * run + 1), splat(-in.halves[1]), sums[i][p]);
        }
      }
    }
  }
#pragma GCC unroll kUnrolled
  for (int i = 0; i < R; ++i)
    for (int p = 0; p < P; ++p) store(y + i * stride + kLanes * p, sums[i][p]);
}

template <class K, int P>
void tiles(const Strip &strip, const RoundedRows &x, int rows, int first_run, int runs, int zero, float *y,
           size_t stride) {
  const size_t blocks = x.cols / 32;
  for (int row = 0; row < rows; row += kTile) {
    const RoundedBlock *in = x.row(row) + first_run;
    float *out = y + row * stride;
    const bool add = first_run > 0;
    switch (std::min(kTile, rows - row)) {
      case 4: tile<K, P, 4>(strip, in, blocks, runs, zero, add, out, stride); break;
      case 3: tile<K, P, 3>(strip, in, blocks, runs, zero, add, out, stride); break;
      case 2: tile<K, P, 2>(strip, in, blocks, runs, zero, add, out, stride); break;
      default: tile<K, P, 1>(strip, in, blocks, runs, zero, add, out, stride);
    }
  }
}

template <class T>
void rows_of(const PanelRows &w, int first, int count, const RoundedRows &x, int rows, float *y, size_t stride) {
  using K = KindOf<T>;
  const int zero = std::max(T::kZero, 0);
  const Strip strip = strip_buffers();
  for (int pair = 0; pair < count; pair += 2) {
    const int panels = std::min(2, count - pair);
    for (int col = 0; col < w.cols; col += kDepth) {
      const int cols = std::min(kDepth, w.cols - col);
      for (int p = 0; p < panels; ++p) unpack<T>(w, first + pair + p, col, cols, part(strip, p, 0));
      float *out = y + kPanelRows * pair;
      if (kLanes == 16 && panels == 2) {
        tiles<K, 2>(strip, x, rows, col / 32, cols / 32, zero, out, stride);
      } else {
        for (int lane = 0; lane < kPanelRows * panels; lane += kLanes)
          tiles<K, 1>(part(strip, lane / 16, lane % 16), x, rows, col / 32, cols / 32, zero, out + lane, stride);
      }
    }
  }
}

}  // namespace

void panels_rows(const PanelRows &w, int first, int count, const RoundedRows &x, int rows, float *y, size_t stride) {
  with_type(w.type, [&](auto type) { rows_of<decltype(type)>(w, first, count, x, rows, y, stride); });
}

void panels_decode(const PanelRows &w, int row, float *y) {
  const Strip strip = strip_buffers();
  for (int col = 0; col < w.cols; col += kDepth) {
    const int cols = std::min(kDepth, w.cols - col), r = row % kPanelRows;
    with_type(w.type, [&](auto type) {
      using T = decltype(type);
      unpack<T>(w, row / kPanelRows, col, cols, strip);
      for (int k = 0; k < cols; ++k) y[col + k] = value<T>(strip, k, r);
    });
  }
}

}  // namespace bitsmith::BITSMITH_ISA
