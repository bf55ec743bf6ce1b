// Scales by trial for many rows at once, a row in every lane; compiled for each instruction set. The numpy code of
// quant/formats/search.py, affine.py, codebook.py and calibration/transforms/awq.py is the definition. `fit` equals it
// to the bit; the losses of the other two are summed in another order.
#include "ladder.h"

#include <algorithm>
#include <limits>

#include "fit.h"
#include "tile_product.h"

namespace bitsmith::quantize::BITSMITH_ISA {
namespace {

constexpr float kLargestFloat = std::numeric_limits<float>::max();
constexpr float kLargestBfloat = 3.3895313892515355e38f;

// The grid of a block, a row in every lane.
struct Scales {
  Floats scale, divisor, offset, zero;
};

BITSMITH_INLINE Floats bf16(Floats a) {
  const Words bits = as<Words>(clip(a, -kLargestBfloat, kLargestBfloat));
  return as<Floats>((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
}

BITSMITH_INLINE Floats stored(Floats a, Float precision) {
  return precision == Float::f32 ? a : precision == Float::f16 ? f16(a) : bf16(a);
}

// The scales of blocks whose weights lie in low..high; `from_extent` of the formats.
BITSMITH_INLINE Scales from_extent(const Ladder &ladder, Floats low, Floats high) {
  Scales found;
  if (!ladder.asymmetric) {
    const Floats scale = max(absolute(low), absolute(high)) / ladder.top;
    found.scale = stored(min(splat(ladder.most), scale), ladder.precision);
    found.offset = found.zero = Floats{};
  } else {
    const float limit = ladder.most;
    low = min(clip(low, -limit, limit), Floats{});
    high = max(clip(high, -limit, limit), Floats{});
    found.scale = stored(high / ladder.top - low / ladder.top, ladder.precision);
    const Floats divisor = found.scale > 0.0f ? found.scale : splat(1.0f);
    found.zero = clip(rint(-low / divisor), 0.0f, ladder.top);
    found.offset = (ladder.half - found.zero) * found.scale;
  }
  found.divisor = found.scale != 0.0f ? found.scale : splat(__builtin_inff());
  return found;
}

// The number of middles between levels that lie below a target: its code.
int index_of(const Ladder &ladder, float target) {
  const float *table = ladder.table.data();
  int low = 0, high = static_cast<int>(ladder.table.size()) - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (target > (table[middle + 1] + table[middle]) * 0.5f) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// How a level is found: consecutive integers, a short table, a long one.
enum class Find { counts, few, many };

template <Find F>
BITSMITH_INLINE Floats level_of(const Ladder &ladder, Floats target) {
  const float *table = ladder.table.data();
  const int levels = static_cast<int>(ladder.table.size());
  if constexpr (F == Find::counts) {
    const Floats bounded = clip(target, table[0], table[levels - 1]), rounded = rint(bounded);
    return rounded - bounded == 0.5f ? rounded - 1.0f : rounded;
  } else if constexpr (F == Find::few) {
    Floats found = splat(table[0]);
    for (int i = 1; i < levels; ++i) {
      found = target > splat((table[i] + table[i - 1]) * 0.5f) ? splat(table[i]) : found;
    }
    return found;
  } else {
    Floats found;
    for (int lane = 0; lane < kLanes; ++lane) found[lane] = table[index_of(ladder, target[lane])];
    return found;
  }
}

template <Find F>
BITSMITH_INLINE Floats value_of(const Ladder &ladder, const Scales &grid, Floats x) {
  const Floats level = level_of<F>(ladder, (ladder.asymmetric ? x - grid.offset : x) / grid.divisor);
  const Floats product = level * grid.scale;
  return ladder.asymmetric ? product + grid.offset : product;
}

// Rows with a column of kLadderRows side by side, [cols, kLadderRows].
struct Tile {
  float *x;
  int64_t cols;
  BITSMITH_INLINE Floats at(int64_t column, int group) const {
    return load<Floats>(x + column * kLadderRows + group * kLanes);
  }
};

void load_tile(const LadderRows &rows, int64_t first, int64_t count, const float *factors, float *to) {
  for (int64_t j = 0; j < rows.cols; j += kLanes) {
    const int wide = static_cast<int>(std::min<int64_t>(kLanes, rows.cols - j));
    for (int group = 0; group < kLadderRows; group += kLanes) {
      Floats square[kLanes];
      for (int r = 0; r < kLanes; ++r) {
        alignas(64) float line[kLanes] = {};
        if (group + r < count) std::copy_n(rows.data + (first + group + r) * rows.cols + j, wide, line);
        square[r] = load<Floats>(line);
      }
      transpose(square);
      for (int i = 0; i < wide; ++i) {
        const Floats column = factors ? square[i] * factors[j + i] : square[i];
        store(to + (j + i) * kLadderRows + group, column);
      }
    }
  }
}

struct Extent {
  Floats low, high;
};

// The scales of a share of the extent; those of the whole extent have no sign.
BITSMITH_INLINE Scales candidate(const Ladder &ladder, const Extent &ends, size_t share) {
  Scales found = from_extent(ladder, ends.low * ladder.ratios[share], ends.high * ladder.ratios[share]);
  if (ladder.turns && ladder.ratios[share] != 1.0f) {
    const Ints turned = ends.high > -ends.low;
    found.scale = turned ? -found.scale : found.scale;
    found.divisor = turned ? -found.divisor : found.divisor;
  }
  return found;
}

BITSMITH_INLINE Extent extent(const Tile &tile, int64_t left, int64_t block, int group) {
  Extent found{tile.at(left, group), tile.at(left, group)};
  for (int64_t j = left + 1; j < left + block; ++j) {
    found.low = min(tile.at(j, group), found.low);
    found.high = max(tile.at(j, group), found.high);
  }
  return found;
}

typedef int64_t Longs __attribute__((vector_size(8 * kLanes)));

// Replaces `best` in the lanes where the error is less.
BITSMITH_INLINE void keep_better(Scales &best, Doubles &least, const Scales &tried, Doubles error, bool first) {
  if (first) {
    best = tried, least = error;
    return;
  }
  const Longs better = error < least;
  least = better ? error : least;
  const Ints narrow = convert<Ints>(better);
  best.scale = narrow ? tried.scale : best.scale;
  best.divisor = narrow ? tried.divisor : best.divisor;
  best.offset = narrow ? tried.offset : best.offset;
  best.zero = narrow ? tried.zero : best.zero;
}

// The best scales of one block, for the rows of one group of lanes.
template <Find F>
Scales best_of(const Ladder &ladder, const Tile &tile, const float *importance, int64_t left, int group) {
  const Extent ends = extent(tile, left, ladder.block, group);
  if (!importance) return candidate(ladder, ends, 0);
  Scales best{};
  Doubles least{};
  for (size_t i = 0; i < ladder.ratios.size(); ++i) {
    const Scales tried = candidate(ladder, ends, i);
    Doubles error{};
    for (int64_t j = left; j < left + ladder.block; ++j) {
      const Floats x = tile.at(j, group);
      const Doubles away = convert<Doubles>(value_of<F>(ladder, tried, x)) - convert<Doubles>(x);
      error += away * away * static_cast<double>(importance[j]);
    }
    keep_better(best, least, tried, error, i == 0);
  }
  return best;
}

void put_scales(const Ladder &ladder, const Scales &grid, const LadderOut &out, int64_t at, int lane) {
  if (out.scale) {
    const float scale = grid.scale[lane];
    uint32_t bits;
    std::memcpy(&bits, &scale, 4);
    if (ladder.precision == Float::f32) {
      std::memcpy(out.scale + at * 4, &scale, 4);
    } else {
      const uint16_t half = ladder.precision == Float::f16 ? f16_bits(scale) : static_cast<uint16_t>(bits >> 16);
      std::memcpy(out.scale + at * 2, &half, 2);
    }
  }
  if (out.zero) out.zero[at] = static_cast<uint8_t>(grid.zero[lane]);
}

template <Find F>
void put_block(const Ladder &ladder, const Tile &tile, const Scales &grid, const LadderOut &out, int64_t row,
               int64_t left, int group, int64_t count) {
  const int lanes = static_cast<int>(std::min<int64_t>(kLanes, count - group * kLanes));
  const int64_t blocks = tile.cols / ladder.block;
  for (int lane = 0; lane < lanes; ++lane) {
    put_scales(ladder, grid, out, (row + lane) * blocks + left / ladder.block, lane);
  }
  if (!out.codes && !out.values) return;
  for (int64_t j = left; j < left + ladder.block; ++j) {
    const Floats x = tile.at(j, group), target = (ladder.asymmetric ? x - grid.offset : x) / grid.divisor;
    const Floats level = level_of<F>(ladder, target), product = level * grid.scale;
    const Floats value = ladder.asymmetric ? product + grid.offset : product;
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t at = (row + lane) * tile.cols + j;
      if (out.values) out.values[at] = value[lane];
      if (!out.codes) continue;
      out.codes[at] = static_cast<uint8_t>(F == Find::counts ? level[lane] - ladder.table[0]
                                                             : static_cast<float>(index_of(ladder, target[lane])));
    }
  }
}

// Room for tiles of a thread.
float *room(size_t tiles, int64_t cols) {
  thread_local std::vector<float> held;
  const size_t size = tiles * static_cast<size_t>(cols) * kLadderRows;
  if (held.size() < size) held.resize(size);
  return held.data();
}

template <Find F>
void fit_rows(const Ladder &ladder, const LadderRows &rows, int64_t first, int64_t count, const LadderOut &out) {
  const Tile tile{room(1, rows.cols), rows.cols};
  load_tile(rows, first, count, rows.factors, tile.x);
  for (int group = 0; group * kLanes < count; ++group) {
    for (int64_t left = 0; left < rows.cols; left += ladder.block) {
      const Scales grid = best_of<F>(ladder, tile, rows.importance, left, group);
      put_block<F>(ladder, tile, grid, out, first + group * kLanes, left, group, count);
    }
  }
}

template <Find F>
void clip_rows(const Ladder &ladder, const LadderRows &rows, const float *gram, int64_t first, int64_t count,
               const LadderOut &out) {
  constexpr int kAcross = kLadderRows / kLanes;
  float *held = room(3, rows.cols);
  const Tile tile{held, rows.cols};
  float *error = held + rows.cols * kLadderRows, *steep = error + rows.cols * kLadderRows;
  load_tile(rows, first, count, nullptr, tile.x);
  const int64_t block = ladder.block;
  for (int64_t left = 0; left < rows.cols; left += block) {
    Scales best[kAcross];
    Doubles least[kAcross];
    Extent ends[kAcross];
    for (int group = 0; group < kAcross; ++group) ends[group] = extent(tile, left, block, group);
    for (size_t i = 0; i < ladder.ratios.size(); ++i) {
      Scales tried[kAcross];
      for (int group = 0; group < kAcross; ++group) {
        tried[group] = candidate(ladder, ends[group], i);
        for (int64_t j = 0; j < block; ++j) {
          const Floats x = tile.at(left + j, group);
          store(error + j * kLadderRows + group * kLanes, value_of<F>(ladder, tried[group], x) - x);
        }
      }
      std::fill_n(steep, block * kLadderRows, 0.0f);
      product(gram + left * rows.cols + left, rows.cols, block, block, error, steep);
      for (int group = 0; group < kAcross; ++group) {
        Doubles loss{};
        for (int64_t j = 0; j < block; ++j) {
          const int64_t at = j * kLadderRows + group * kLanes;
          loss += convert<Doubles>(load<Floats>(error + at)) * convert<Doubles>(load<Floats>(steep + at));
        }
        keep_better(best[group], least[group], tried[group], loss, i == 0);
      }
    }
    for (int group = 0; group * kLanes < count; ++group) {
      put_block<F>(ladder, tile, best[group], out, first + group * kLanes, left, group, count);
    }
  }
}

template <Find F>
double loss_of_rows(const Ladder &ladder, const LadderRows &rows, const float *gram, int64_t first, int64_t count) {
  const int64_t cols = rows.cols;
  float *held = room(3, cols);
  const Tile tile{held, cols};
  float *error = held + cols * kLadderRows, *steep = error + cols * kLadderRows;
  load_tile(rows, first, count, nullptr, error);
  load_tile(rows, first, count, rows.factors, tile.x);
  for (int group = 0; group < kLadderRows / kLanes; ++group) {
    for (int64_t left = 0; left < cols; left += ladder.block) {
      const Scales grid = best_of<F>(ladder, tile, rows.importance, left, group);
      for (int64_t j = left; j < left + ladder.block; ++j) {
        float *own = error + j * kLadderRows + group * kLanes;
        const Floats value = value_of<F>(ladder, grid, tile.at(j, group)) / rows.factors[j];
        store(own, value - load<Floats>(own));
      }
    }
  }
  return output_loss(gram, cols, error, steep);
}

Find find(const Ladder &ladder) {
  return ladder.counts ? Find::counts : ladder.table.size() <= 16 ? Find::few : Find::many;
}

void fit(const Ladder &ladder, const LadderRows &rows, int64_t first, int64_t count, const LadderOut &out) {
  switch (find(ladder)) {
    case Find::counts: return fit_rows<Find::counts>(ladder, rows, first, count, out);
    case Find::few: return fit_rows<Find::few>(ladder, rows, first, count, out);
    default: return fit_rows<Find::many>(ladder, rows, first, count, out);
  }
}

void clip_to(const Ladder &ladder, const LadderRows &rows, const float *gram, int64_t first, int64_t count,
             const LadderOut &out) {
  switch (find(ladder)) {
    case Find::counts: return clip_rows<Find::counts>(ladder, rows, gram, first, count, out);
    case Find::few: return clip_rows<Find::few>(ladder, rows, gram, first, count, out);
    default: return clip_rows<Find::many>(ladder, rows, gram, first, count, out);
  }
}

double loss(const Ladder &ladder, const LadderRows &rows, const float *gram, int64_t first, int64_t count) {
  switch (find(ladder)) {
    case Find::counts: return loss_of_rows<Find::counts>(ladder, rows, gram, first, count);
    case Find::few: return loss_of_rows<Find::few>(ladder, rows, gram, first, count);
    default: return loss_of_rows<Find::many>(ladder, rows, gram, first, count);
  }
}

}  // namespace

extern const LadderKernels kLadderKernels;
const LadderKernels kLadderKernels{fit, clip_to, loss};

}  // namespace bitsmith::quantize::BITSMITH_ISA
