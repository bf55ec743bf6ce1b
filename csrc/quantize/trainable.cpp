// Rounding with offsets that learn, and its straight-through gradient, each in one pass over the weights; compiled for
// each instruction set. `_Decoded` of calibration/trainable.py is the definition. Values equal it to the bit; gradients
// of scales are summed in another order.
#include "trainable.h"

#include "vectors.h"

namespace bitsmith::quantize::BITSMITH_ISA {
namespace {

using namespace bitsmith::BITSMITH_ISA;

// Scale and base of a block.
struct Block {
  Floats scale, divisor, base;
};

BITSMITH_INLINE Block block_at(const TrainableRows &rows, int64_t at) {
  const float scale = rows.scale[at];
  const float divisor = scale != 0.0f ? scale : __builtin_inff();
  return {splat(scale), splat(divisor), splat(rows.base ? rows.base[at] : 0.0f)};
}

// Where weights lie on the grid. unit: in units of levels; inside: all bits set between the ends of the table
struct Place {
  Floats level, unit;
  Ints inside;
};

BITSMITH_INLINE Place place(const TrainableRows &rows, const Block &block, int64_t at) {
  const Floats weight = load<Floats>(rows.weight + at);
  const Floats unit = (rows.base ? weight - block.base : weight) / block.divisor;
  const Floats index = unit - rows.first + load<Floats>(rows.offsets + at);
  // The least integer that is not below index - 0.5: a tie goes to the lower code.
  const Floats wanted = clip(index - 0.5f, -1.0f, rows.top), near = rint(wanted);
  const Floats code = clip(near < wanted ? near + 1.0f : near, 0.0f, rows.top);
  return {code + rows.first, unit, index >= -0.5f & index <= rows.top + 0.5f};
}

void values(const TrainableRows &rows, int64_t first, int64_t count, float *out) {
  for (int64_t left = first * rows.cols, end = (first + count) * rows.cols; left < end; left += rows.block) {
    const Block block = block_at(rows, left / rows.block);
    for (int64_t at = left; at < left + rows.block; at += kLanes) {
      const Floats value = place(rows, block, at).level * block.scale;
      store(out + at, rows.base ? value + block.base : value);
    }
  }
}

BITSMITH_INLINE float total(Floats v) {
  float sum = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) sum += v[lane];
  return sum;
}

void gradients(const TrainableRows &rows, int64_t first, int64_t count, const float *of_values,
               const TrainableGradients &out) {
  for (int64_t left = first * rows.cols, end = (first + count) * rows.cols; left < end; left += rows.block) {
    const Block block = block_at(rows, left / rows.block);
    Floats scale{}, base{};
    for (int64_t at = left; at < left + rows.block; at += kLanes) {
      const Place found = place(rows, block, at);
      const Floats gradient = load<Floats>(of_values + at);
      const Floats inside = as<Floats>(as<Ints>(gradient) & found.inside);
      store(out.offsets + at, inside * block.scale);
      scale += gradient * found.level - inside * found.unit;
      base += gradient - inside;
    }
    out.scale[left / rows.block] = total(scale);
    if (out.base) out.base[left / rows.block] = total(base);
  }
}

}  // namespace

extern const TrainableKernels kTrainableKernels;
const TrainableKernels kTrainableKernels{kLanes, values, gradients};

}  // namespace bitsmith::quantize::BITSMITH_ISA
