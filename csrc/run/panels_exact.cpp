// Rows that are not rounded times panels.
#include <algorithm>

#include "exact.h"

namespace bitsmith::BITSMITH_ISA {
namespace {

constexpr int kDepth = 256;  // columns decoded at a time: whole blocks of every type

// One row times some panels, weights unpacked in registers. sums: of the inputs of each sub-block, of affine types
template <class T>
void row_of(const PanelRows &w, int first, int count, const float *x, const float *sums, const Reading &reading,
            float *y) {
  constexpr BlockLayout layout = layout_of(T::kType);
  constexpr int kSubs = 32 / T::kSub, kRuns = layout.weights / 32;
  for (int panel = 0; panel < count; ++panel) {
    for (int group = 0; group < kExactGroups; ++group) {
      Floats total{};
      for (int at = 0; at < w.blocks(); ++at) {
        const BlockAt block = block_at<T>(w, first + panel, at, group);
        if (group == 0)
          for (int word = 0; word < layout.words; ++word) {
            __builtin_prefetch(block.words + reading.near + 64 * word, 0, 3);
            __builtin_prefetch(block.words + reading.far + 64 * word, 0, 2);
          }
        const Floats d = block_scale<T>(block.words, block.half);
        Floats dmin{};
        if constexpr (T::kAffine) dmin = T::dmin(block.words);
        for (int run = 0; run < kRuns; ++run) {
          const float *in = x + at * layout.weights + 32 * run;
          for (int part = 0; part < kSubs; ++part) {
            const int sub = run * kSubs + part;
            Floats dots[4] = {};
            each_level<T>(block.words, run, part * 8 / kSubs, (part + 1) * 8 / kSubs,
                          [&](int column, Floats level) BITSMITH_INLINE_LAMBDA {
                            Floats &dot = dots[column & 3];
                            dot = fma(level, splat(in[column]), dot);
                          });
            total = fma((dots[0] + dots[1]) + (dots[2] + dots[3]), scale_in<T>(block.words, d, sub), total);
            if constexpr (T::kAffine)
              total -= low_in<T>(block.words, dmin, sub) * sums[at * layout.weights / T::kSub + sub];
          }
        }
      }
      store(y + kPanelRows * panel + kLanes * group, total);
    }
  }
}

}  // namespace

void panels_row_exact(const PanelRows &w, int first, int count, const float *x, const Reading &reading, float *y) {
  with_type(w.type, [&](auto type) {
    using T = decltype(type);
    float *sums = nullptr;
    if constexpr (T::kAffine) {
      sums = scratch<float, 12>(w.cols / T::kSub);
      for (int sub = 0; sub < w.cols / T::kSub; ++sub) {
        Floats all{};
        for (int k = 0; k < T::kSub; k += kLanes) all += load<Floats>(x + T::kSub * sub + k);
        sums[sub] = sum(all);
      }
    }
    row_of<T>(w, first, count, x, sums, reading, y);
  });
}

void panels_exact(const PanelRows &w, int first, int count, const Rows &x, float *y, size_t stride) {
  constexpr int kStrip = kDepth * kPanelRows;
  float *values = scratch<float, 3>(2 * kStrip);
  for (int pair = 0; pair < count; pair += 2) {
    const int panels = std::min(2, count - pair);
    float *out = y + kPanelRows * pair;
    for (int i = 0; i < x.count; ++i) std::fill(out + i * stride, out + i * stride + kPanelRows * panels, 0.0f);
    for (int col = 0; col < w.cols; col += kDepth) {
      const int cols = std::min(kDepth, w.cols - col);
      with_type(w.type, [&](auto type) {
        for (int p = 0; p < panels; ++p)
          decode_blocks<decltype(type)>(w, first + pair + p, col, cols, values + p * kStrip);
      });
      strip_product({x.data + col, x.stride, x.count}, cols, values, panels == 2 ? values + kStrip : nullptr, out,
                    stride);
    }
  }
}

void panels_columns(const PanelRows &w, int first, int count, const int *columns, int many, const Rows &x, float *y,
                    size_t stride) {
  constexpr int kStrip = kDepth * kPanelRows;
  const int weights = layout_of(w.type).weights;
  float *strips = scratch<float, 3>(2 * kStrip), *block = scratch<float, 13>(kStrip);
  for (int pair = 0; pair < count; pair += 2) {
    const int panels = std::min(2, count - pair);
    for (int begin = 0; begin < many; begin += kDepth) {
      const int depth = std::min(kDepth, many - begin);
      for (int p = 0; p < panels; ++p) {
        int decoded = -1;
        for (int i = 0; i < depth; ++i) {
          const int column = columns[begin + i], at = column / weights;
          if (at != decoded)
            with_type(w.type, [&](auto type) {
              decode_blocks<decltype(type)>(w, first + pair + p, at * weights, weights, block);
            });
          decoded = at;
          std::copy_n(block + static_cast<size_t>(column % weights) * kPanelRows, kPanelRows,
                      strips + p * kStrip + i * kPanelRows);
        }
      }
      strip_product({x.data + begin, x.stride, x.count}, depth, strips, panels == 2 ? strips + kStrip : nullptr,
                    y + kPanelRows * pair, stride);
    }
  }
}

}  // namespace bitsmith::BITSMITH_ISA
