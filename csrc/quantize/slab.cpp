// GPTQ's pass and coordinate descent on tiles of rows, compiled for each instruction set. gptq.py, descent.py and
// column_grid.py are the definition; sums are taken in another order, so that a choice between two codes that are
// almost equally good may differ. A tile does not depend on its neighbours, so the number of threads changes nothing.
#include "slab.h"

#include <algorithm>

#include "tile_product.h"

namespace bitsmith::quantize::BITSMITH_ISA {
namespace {

constexpr int kAcross = kSlabRows / kLanes;  // vectors of a column
constexpr int kStrip = 16;                   // columns that pass errors on one by one

// The number of middles between levels that lie below a target: its code.
int index_of(const ColumnGrid &grid, float target) {
  int low = 0, high = grid.levels - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (target > (grid.table[middle + 1] + grid.table[middle]) * 0.5f) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The grid of the rows of a tile in one column.
class Column {
 public:
  Column(const ColumnGrid &grid, const SlabTile &slab, int64_t column) : grid_(grid) {
    const int64_t at = column / grid.block * slab.total + slab.first;
    fill(scale_, grid.scale + at, slab.rows);
    if (grid.offset) fill(offset_, grid.offset + at, slab.rows);
  }

  // The table's entry nearest to each target; ties go to the lower one.
  BITSMITH_INLINE Floats level(Floats target, int v) const { return nearest(grid_, unit(target, v)); }

  // A target in units of the table.
  BITSMITH_INLINE Floats unit(Floats target, int v) const {
    const Floats scale = load<Floats>(scale_ + v * kLanes);
    if (grid_.offset) target = target - load<Floats>(offset_ + v * kLanes);
    return target / (scale != 0.0f ? scale : splat(__builtin_inff()));
  }

  BITSMITH_INLINE Floats value(Floats level, int v) const {
    const Floats product = level * load<Floats>(scale_ + v * kLanes);
    return grid_.offset ? product + load<Floats>(offset_ + v * kLanes) : product;
  }

 private:
  static void fill(float *to, const float *from, int64_t rows) {
    std::copy(from, from + rows, to);
    std::fill(to + rows, to + kSlabRows, 0.0f);
  }

  static BITSMITH_INLINE Floats nearest(const ColumnGrid &grid, Floats target) {
    if (grid.counts) return clip(up(target - 0.5f), grid.table[0], grid.table[grid.levels - 1]);
    if (grid.levels <= 16) {
      Floats found = splat(grid.table[0]);
      for (int i = 1; i < grid.levels; ++i) {
        found = target > splat((grid.table[i] + grid.table[i - 1]) * 0.5f) ? splat(grid.table[i]) : found;
      }
      return found;
    }
    Floats found;
    for (int lane = 0; lane < kLanes; ++lane) found[lane] = grid.table[index_of(grid, target[lane])];
    return found;
  }

  // The least integer that is not below; |a| may be large.
  static BITSMITH_INLINE Floats up(Floats a) {
    const Floats near = rint(a);
    return near < a ? near + 1.0f : near;
  }

  const ColumnGrid &grid_;
  alignas(64) float scale_[kSlabRows];
  alignas(64) float offset_[kSlabRows] = {};
};

uint8_t code_of(const ColumnGrid &grid, float level) {
  if (grid.counts) return static_cast<uint8_t>(level - grid.table[0]);
  return static_cast<uint8_t>(std::lower_bound(grid.table, grid.table + grid.levels, level) - grid.table);
}

BITSMITH_INLINE float *column(float *of, int64_t i) { return of + i * kSlabRows; }
BITSMITH_INLINE const float *column(const float *of, int64_t i) { return of + i * kSlabRows; }

void load_rows(const SlabTile &slab, const float *rows, float *to) {
  for (int64_t j = 0; j < slab.cols; ++j) {
    for (int64_t r = 0; r < slab.rows; ++r) column(to, j)[r] = rows[(slab.first + r) * slab.cols + j];
    std::fill(column(to, j) + slab.rows, column(to, j) + kSlabRows, 0.0f);
  }
}

// target[j] += sum over i < j of factors[i, j] change[i], column by column. round: makes change[j] when target[j] is
// done
template <class Round>
void strip_by_strip(const float *factors, int64_t stride, int count, float *target, const float *change,
                    const Round &round) {
  for (int left = 0; left < count; left += kStrip) {
    const int right = std::min(left + kStrip, count);
    for (int j = left; j < right; ++j) {
      round(j);
      for (int later = j + 1; later < right; ++later) {
        const Floats factor = splat(factors[j * stride + later]);
        for (int v = 0; v < kAcross; ++v) {
          float *to = column(target, later) + v * kLanes;
          store(to, fma(factor, load<Floats>(column(change, j) + v * kLanes), load<Floats>(to)));
        }
      }
    }
    if (right < count) {
      product(factors + left * stride + right, stride, right - left, count - right, column(change, left),
              column(target, right));
    }
  }
}

void feedback(const SlabTile &slab, const Hessian &h, const ColumnGrid &grid, float *scratch) {
  const int64_t cols = slab.cols;
  float *ordered = scratch, *target = ordered + cols * kSlabRows;
  const auto place = [&](int64_t i) { return h.order ? h.order[i] : i; };
  for (int64_t start = 0; start < cols; start += kStep) {
    const int count = static_cast<int>(std::min<int64_t>(kStep, cols - start));
    for (int j = 0; j < count; ++j) {
      std::copy_n(column(slab.weights, place(start + j)), kSlabRows, column(target, j));
    }
    product(h.feedback + start, cols, start, count, ordered, target);
    strip_by_strip(h.feedback + start * cols + start, cols, count, target, column(ordered, start), [&](int j) {
      const int64_t own = place(start + j);
      const Column at(grid, slab, own);
      for (int v = 0; v < kAcross; ++v) {
        const Floats level = at.level(load<Floats>(column(target, j) + v * kLanes), v);
        const Floats lost = load<Floats>(column(slab.weights, own) + v * kLanes) - at.value(level, v);
        store(column(slab.levels, own) + v * kLanes, level);
        store(column(slab.error, own) + v * kLanes, lost);
        store(column(ordered, start + j) + v * kLanes, lost);
      }
    });
  }
}

void nearest(const SlabTile &slab, const ColumnGrid &grid, float *to, uint8_t *codes) {
  alignas(64) float units[kSlabRows], levels[kSlabRows];
  for (int64_t j = 0; j < slab.cols; ++j) {
    const Column at(grid, slab, j);
    for (int v = 0; v < kAcross; ++v) {
      const Floats w = load<Floats>(column(slab.weights, j) + v * kLanes), level = at.level(w, v);
      store(levels + v * kLanes, level);
      store(units + v * kLanes, at.unit(w, v));
      store(column(to, j) + v * kLanes, w - at.value(level, v));
    }
    for (int64_t r = 0; r < slab.rows; ++r) {
      const int code = grid.counts ? code_of(grid, levels[r]) : index_of(grid, units[r]);
      codes[(slab.first + r) * slab.cols + j] = static_cast<uint8_t>(code);
    }
  }
}

void output_error(const SlabTile &slab, const Hessian &h, const float *lost, double *to, float *scratch) {
  const int64_t cols = slab.cols;
  float *ordered = scratch, *owed = ordered + cols * kSlabRows;
  const auto place = [&](int64_t i) { return h.order ? h.order[i] : i; };
  for (int64_t i = 0; i < cols; ++i) std::copy_n(column(lost, place(i)), kSlabRows, column(ordered, i));
  Doubles total[kAcross] = {};
  for (int64_t start = 0; start < cols; start += kStep) {
    const int count = static_cast<int>(std::min<int64_t>(kStep, cols - start));
    std::copy_n(column(ordered, start), count * kSlabRows, owed);
    product(h.feedback + start, cols, start, count, ordered, owed);
    const float *own = column(ordered, start);
    strip_by_strip(h.feedback + start * cols + start, cols, count, owed, own, [](int) {});
    for (int j = 0; j < count; ++j) {
      const float pivot = h.pivots[start + j], added = h.added[place(start + j)];
      for (int v = 0; v < kAcross; ++v) {
        const Floats sum = load<Floats>(column(owed, j) + v * kLanes);
        const Floats error = load<Floats>(column(own, j) + v * kLanes);
        total[v] += convert<Doubles>(sum * sum * pivot) - convert<Doubles>(error * error * added);
      }
    }
  }
  for (int64_t r = 0; r < slab.rows; ++r) to[slab.first + r] = std::max(0.0, total[r / kLanes][r % kLanes]);
}

// (e H) of columns start..stop under the damped Hessian
void slope(const SlabTile &slab, const Hessian &h, int64_t start, int64_t stop) {
  for (int64_t j = start; j < stop; ++j) {
    for (int v = 0; v < kAcross; ++v) {
      store(column(slab.slope, j - start) + v * kLanes, load<Floats>(column(slab.error, j) + v * kLanes) * h.added[j]);
    }
  }
  product(h.hessian + start, slab.cols, slab.cols, stop - start, slab.error, slab.slope);
}

void moments(const SlabTile &slab, const Hessian &h, int64_t start, int64_t left, int64_t block, const Moments &to,
             float *scratch) {
  float *steep = scratch;
  const float *levels = column(slab.levels, left), *slopes = column(slab.slope, left - start);
  for (int64_t j = 0; j < block; ++j) {
    for (int v = 0; v < kAcross; ++v) {
      store(column(steep, j) + v * kLanes, load<Floats>(column(levels, j) + v * kLanes) * h.added[left + j]);
    }
  }
  product(h.hessian + left * slab.cols + left, slab.cols, block, block, levels, steep);
  alignas(64) float sums[4][kSlabRows];
  for (int v = 0; v < kAcross; ++v) {
    Floats first{}, sum{}, square{}, mass{};
    for (int64_t j = 0; j < block; ++j) {
      const Floats level = load<Floats>(column(levels, j) + v * kLanes);
      const Floats down = load<Floats>(column(slopes, j) + v * kLanes);
      const Floats steepness = load<Floats>(column(steep, j) + v * kLanes);
      first = fma(level, down, first);
      sum += down;
      square = fma(level, steepness, square);
      mass += steepness;
    }
    store(sums[0] + v * kLanes, first);
    store(sums[1] + v * kLanes, sum);
    store(sums[2] + v * kLanes, square);
    store(sums[3] + v * kLanes, mass);
  }
  float *out[] = {to.first, to.sum, to.square, to.mass};
  for (int i = 0; i < 4; ++i) std::copy_n(sums[i], slab.rows, out[i] + slab.first);
}

void move(const SlabTile &slab, const Hessian &h, const ColumnGrid &grid, int64_t start, int64_t stop, int64_t left,
          const float *scale, const float *offset, float *scratch) {
  const int64_t block = grid.block, after = left + block;
  float *moved = scratch;
  const ColumnGrid next{grid.table, grid.levels, grid.counts, scale, offset, block};
  const Column old(grid, slab, left), now(next, slab, 0);
  for (int64_t j = 0; j < block; ++j) {
    for (int v = 0; v < kAcross; ++v) {
      const Floats level = load<Floats>(column(slab.levels, left + j) + v * kLanes);
      const Floats change = old.value(level, v) - now.value(level, v);  // of the error
      float *error = column(slab.error, left + j) + v * kLanes,
            *own = column(slab.slope, left - start + j) + v * kLanes;
      store(error, load<Floats>(error) + change);
      store(own, load<Floats>(own) + change * h.added[left + j]);
      store(column(moved, j) + v * kLanes, change);
    }
  }
  // blocks before this one are finished
  product(h.hessian + left * slab.cols + left, slab.cols, block, std::max(after, stop) - left, moved,
          column(slab.slope, left - start));
}

void recode(const SlabTile &slab, const Hessian &h, const ColumnGrid &grid, int64_t start, int64_t stop,
            float *scratch) {
  const int64_t cols = slab.cols;
  const int count = static_cast<int>(stop - start);
  float *change = scratch;
  strip_by_strip(h.hessian + start * cols + start, cols, count, slab.slope, change, [&](int j) {
    const int64_t own = start + j;
    const Floats diagonal = splat(h.hessian[own * cols + own] + h.added[own]);
    const Column at(grid, slab, own);
    for (int v = 0; v < kAcross; ++v) {
      const Floats w = load<Floats>(column(slab.weights, own) + v * kLanes);
      const Floats before = load<Floats>(column(slab.error, own) + v * kLanes);
      const Floats level = at.level(load<Floats>(column(slab.slope, j) + v * kLanes) / diagonal + w - before, v);
      const Floats lost = w - at.value(level, v);
      store(column(slab.levels, own) + v * kLanes, level);
      store(column(slab.error, own) + v * kLanes, lost);
      store(column(change, j) + v * kLanes, lost - before);
    }
  });
}

void codes(const SlabTile &slab, const ColumnGrid &grid, uint8_t *to) {
  for (int64_t j = 0; j < slab.cols; ++j) {
    for (int64_t r = 0; r < slab.rows; ++r) {
      to[(slab.first + r) * slab.cols + j] = code_of(grid, column(slab.levels, j)[r]);
    }
  }
}

double loss(const SlabTile &slab, const ColumnGrid &grid, const float *factors, const float *gram, float *scratch) {
  float *error = scratch, *steep = error + slab.cols * kSlabRows;
  for (int64_t j = 0; j < slab.cols; ++j) {
    const Column at(grid, slab, j);
    const Floats factor = splat(factors[j]);
    for (int v = 0; v < kAcross; ++v) {
      const Floats w = load<Floats>(column(slab.weights, j) + v * kLanes);
      store(column(error, j) + v * kLanes, at.value(at.level(w * factor, v), v) / factor - w);
    }
    std::fill(column(error, j) + slab.rows, column(error, j) + kSlabRows, 0.0f);
  }
  return output_loss(gram, slab.cols, error, steep);
}

}  // namespace

extern const SlabKernels kSlabKernels;
const SlabKernels kSlabKernels{load_rows, feedback, nearest, output_error, slope, moments, move, recode, codes, loss};

}  // namespace bitsmith::quantize::BITSMITH_ISA
