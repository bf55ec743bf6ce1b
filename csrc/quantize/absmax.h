// Codes of blocks scaled by their absmax; see absmax.cpp.
#pragma once

#include "types.h"

namespace bitsmith::quantize {

// 16 ascending values, the 15 middles between them, and the stored pattern of each.
struct Codebook {
  int block;  // weights that share an absmax: a multiple of 16, at most 4096
  const float *table, *middles;
  const uint8_t *patterns;
};

// Where results go. Either codes, a byte each, or packed: patterns, two a byte, the first in the upper half.
struct CodebookOut {
  uint8_t *codes, *packed;
  float *absmax;
};

struct AbsmaxKernels {
  // scales: what values are decoded with for the error; null: absmax
  Tally (*codebook)(const Codebook &, const Weights &, const float *scales, const CodebookOut &);
  // int8 of weights rounded to float16, with one absmax a row; rows divide by 16
  Tally (*rows)(const Weights &, int8_t *codes, float *absmax);
};

}  // namespace bitsmith::quantize
