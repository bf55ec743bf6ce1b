// Codes of blocks scaled by their absmax, as bitsandbytes rounds them: tables of 16 values, and int8 by rows. Compiled
// for each instruction set. The numpy code in quant/formats/fourbit.py and rowabsmax.py is the definition.
#include "absmax.h"

#include <algorithm>

#include "emit.h"
#include "read.h"

namespace bitsmith::quantize::BITSMITH_ISA {
namespace {

constexpr float kSmallest = 1e-38f;  // no smaller absmax is divided by
constexpr int kLongest = 4096;       // weights that are read at once

BITSMITH_INLINE float largest_lane(Floats v) {
  float found = v[0];
  for (int i = 1; i < kLanes; ++i) found = v[i] > found ? v[i] : found;
  return found;
}

BITSMITH_INLINE float magnitude_of(Ints largest) {
  int32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits = largest[lane] > bits ? largest[lane] : bits;
  float found;
  std::memcpy(&found, &bits, sizeof found);
  return found;
}

const uint8_t *row_of(const Weights &w, int64_t row) {
  return w.data + (w.order ? w.order[row] : row) * w.cols * (w.type == Float::f32 ? 4 : 2);
}

Tally codebook(const Codebook &book, const Weights &w, const float *scales, const CodebookOut &out) {
  alignas(64) float x[kLongest];
  alignas(64) int32_t codes[kLongest];
  const int64_t blocks = w.cols / book.block;
  Lost lost;
  Ints largest{};
  for (int64_t row = 0; row < w.rows; ++row) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t at = row * blocks + block, first = at * book.block;
      read_weights(x, row_of(w, row) + block * book.block * (w.type == Float::f32 ? 4 : 2), w.type, book.block,
                   largest);
      Floats top{};
      for (int i = 0; i < book.block; i += kLanes) top = max(absolute(load<Floats>(x + i)), top);
      const float absmax = largest_lane(top), inverse = 1.0f / std::max(absmax, kSmallest);
      out.absmax[at] = absmax;
      const Floats scale = splat(scales ? scales[at] : absmax);
      for (int i = 0; i < book.block; i += kLanes) {
        const Floats weight = load<Floats>(x + i), unit = clip(weight * inverse, -1.0f, 1.0f);
        Floats level = splat(book.table[0]);
        Ints code{};
        for (int j = 0; j < 15; ++j) {
          const Ints above = unit > splat(book.middles[j]);
          level = above ? splat(book.table[j + 1]) : level;
          code -= above;
        }
        store(codes + i, code);
        lost.error.add(i, level * scale - weight);
        lost.weight.add(i, weight);
      }
      if (out.codes) {
        for (int i = 0; i < book.block; ++i) out.codes[first + i] = static_cast<uint8_t>(codes[i]);
      } else {
        for (int i = 0; i < book.block; i += 2) {
          out.packed[(first + i) / 2] = book.patterns[codes[i]] << 4 | book.patterns[codes[i + 1]];
        }
      }
    }
  }
  return {magnitude_of(largest), lost.error.total(), lost.weight.total()};
}

Tally rows(const Weights &w, int8_t *codes, float *absmax) {
  alignas(64) float x[kLongest];
  Lost lost;
  Ints largest{};
  const int size = w.type == Float::f32 ? 4 : 2;
  const auto by_parts = [&](int64_t row, const auto &visit) {
    for (int64_t first = 0; first < w.cols; first += kLongest) {
      const int count = static_cast<int>(std::min<int64_t>(kLongest, w.cols - first));
      read_weights(x, row_of(w, row) + first * size, w.type, count, largest);
      for (int i = 0; i < count; i += kLanes) visit(first + i, load<Floats>(x + i));
    }
  };
  for (int64_t row = 0; row < w.rows; ++row) {
    Floats top{};
    by_parts(row, [&](int64_t, Floats weight) { top = max(absolute(f16(weight)), top); });
    const float found = largest_lane(top), inverse = 1.0f / (found > 0 ? found : 1.0f) * 127.0f;
    const float scale = found * (1.0f / 127.0f);
    absmax[row] = found;
    by_parts(row, [&](int64_t at, Floats weight) {
      const Floats level = clip(rint(f16(weight) * inverse), -127.0f, 127.0f);
      const Ints code = convert<Ints>(level);
      for (int lane = 0; lane < kLanes; ++lane) codes[row * w.cols + at + lane] = static_cast<int8_t>(code[lane]);
      lost.error.add(static_cast<int>(at % 16), level * scale - weight);
      lost.weight.add(static_cast<int>(at % 16), weight);
    });
  }
  return {magnitude_of(largest), lost.error.total(), lost.weight.total()};
}

}  // namespace

extern const AbsmaxKernels kAbsmaxKernels;
const AbsmaxKernels kAbsmaxKernels{codebook, rows};

}  // namespace bitsmith::quantize::BITSMITH_ISA
