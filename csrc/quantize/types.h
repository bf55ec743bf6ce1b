// The ggml types that are quantized here, and what a piece of work is told.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace bitsmith::quantize {

// In the order of `kTypes`.
enum class Type {
  q8_0,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  iq4_nl,
  mxfp4,
  nvfp4,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
  iq4_xs,
  q1_0,
  q2_0,
  tq1_0,
  tq2_0
};

// group: weights of a ggml block; block: weights that share a scale; bytes: of a ggml block
struct TypeFacts {
  const char *name;
  int group, block, bytes;
};

constexpr TypeFacts kTypes[] = {{"q8_0", 32, 32, 34},   {"q4_0", 32, 32, 18},     {"q4_1", 32, 32, 20},
                                {"q5_0", 32, 32, 22},   {"q5_1", 32, 32, 24},     {"iq4_nl", 32, 32, 18},
                                {"mxfp4", 32, 32, 17},  {"nvfp4", 64, 16, 36},    {"q2_k", 256, 16, 84},
                                {"q3_k", 256, 16, 110}, {"q4_k", 256, 32, 144},   {"q5_k", 256, 32, 176},
                                {"q6_k", 256, 16, 210}, {"iq4_xs", 256, 32, 136}, {"q1_0", 128, 128, 18},
                                {"q2_0", 64, 64, 18},   {"tq1_0", 256, 256, 54},  {"tq2_0", 256, 256, 66}};

constexpr const TypeFacts &facts(Type type) { return kTypes[static_cast<int>(type)]; }

// How scales are searched; the numbers of the Python format, see `bitsmith.quant.formats.core_fit.Search`.
struct Search {
  Type type;
  std::vector<float> targets;   // levels tried for the largest weight of a block
  std::vector<float> divisors;  // what the largest scale of a super-block is divided by to get its d
  std::vector<int> reach;       // steps around the nearest integer scale (or scale byte) that are tried
  int rounds = 0;
  std::vector<float> scales;  // what each scale byte means (mxfp4, nvfp4), ascending
};

enum class Float { f32, f16, bf16 };

// Rows of weights, as a checkpoint stores them.
struct Weights {
  const uint8_t *data;
  Float type;
  int64_t rows, cols;
  const int64_t *order;  // the row that comes n-th; null: as they lie
  const float *columns;  // what each column's squared error counts; null: 1
};

// Where the parameters of every block go, by what the type has; float16 as its bits.
struct Fitted {
  uint16_t *d = nullptr, *m = nullptr;         // of every group: dmin of two-level types is m
  uint8_t *scales = nullptr, *mins = nullptr;  // of every block: integers, or scale bytes
};

// largest: the largest magnitude; beyond float16's, or NaN, nothing else is to be relied on
// squared_error, squared_weight: sums over all weights
struct Tally {
  float largest = 0;
  double squared_error = 0, squared_weight = 0;
};

// Kernels of one instruction set.
struct Kernels {
  // Parameters for every block.
  void (*fit)(const Search &, const Weights &, const Fitted &);
  // ggml blocks for all rows. reference: by ggml's own rounding, for q8_0, q4_0, q4_1, q5_0, q5_1 without column
  // weights
  Tally (*encode)(const Search &, const Weights &, bool reference, uint8_t *out);
};

}  // namespace bitsmith::quantize
