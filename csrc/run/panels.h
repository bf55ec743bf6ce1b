// Matrices of ggml's block types, and of grids, with 16 rows interleaved, as the products read them.
//
// A panel is 16 rows. A block of 16 rows is stored as vectors of 16 words: word w of the block of each row side by
// side, so that one vector instruction works on 16 rows. Types whose blocks are no whole number of words carry a
// float16 at the front or the end; those of a panel lie behind its words. A panel takes exactly the bytes of its rows.
// The codes of q3_k, q5_k and q6_k are packed in another way than in files (repack.cpp). The scale of mxfp4, a byte in
// files, is bfloat16 in place of the float16. Those of nvfp4 have five bits of exponent in place of four, so that they
// are the upper bits of a float.
//
// A grid, value = table[code] * scale + offset, comes in blocks of 32, 64 or 128 columns (int4_128): a word with the
// scale, for integers one with the offset, both float32, then the codes in runs of 32 columns: a byte each, or nibbles,
// of column j and j + 16 in byte j. A block of nvfp4_64 is one of nvfp4 behind a float32 that its scales are multiplied
// with.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitsmith {

enum class PanelType {
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  iq4_nl,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
  iq4_xs,
  mxfp4,
  nvfp4,
  q1_0,
  q2_0,
  tq1_0,
  tq2_0,
  iq1_s,
  iq1_m,
  iq2_xxs,
  iq2_xs,
  iq2_s,
  iq3_xxs,
  iq3_s,
  int4_32,
  int4_64,
  int4_128,
  int8_32,
  int8_64,
  int8_128,
  nf4_32,
  nf4_64,
  nf4_128,
  fp4_32,
  fp4_64,
  fp4_128,
  nvfp4_64,
};

constexpr int kPanelRows = 16;
constexpr int kPanelTypes = 38;

// half: where the block's float16 outside its words stands
enum class Half { none, front, back };

struct BlockLayout {
  const char *name;
  int weights;
  int words;
  Half half;
  constexpr int bytes() const { return 4 * words + (half == Half::none ? 0 : 2); }
};

constexpr BlockLayout kBlocks[kPanelTypes] = {
    {"q4_0", 32, 4, Half::front},      {"q4_1", 32, 5, Half::none},      {"q5_0", 32, 5, Half::front},
    {"q5_1", 32, 6, Half::none},       {"q8_0", 32, 8, Half::front},     {"iq4_nl", 32, 4, Half::front},
    {"q2_k", 256, 21, Half::none},     {"q3_k", 256, 27, Half::back},    {"q4_k", 256, 36, Half::none},
    {"q5_k", 256, 44, Half::none},     {"q6_k", 256, 52, Half::back},    {"iq4_xs", 256, 34, Half::none},
    {"mxfp4", 32, 4, Half::front},     {"nvfp4", 64, 9, Half::none},     {"q1_0", 128, 4, Half::front},
    {"q2_0", 64, 4, Half::front},      {"tq1_0", 256, 13, Half::back},   {"tq2_0", 256, 16, Half::back},
    {"iq1_s", 256, 12, Half::front},   {"iq1_m", 256, 14, Half::none},   {"iq2_xxs", 256, 16, Half::front},
    {"iq2_xs", 256, 18, Half::front},  {"iq2_s", 256, 20, Half::front},  {"iq3_xxs", 256, 24, Half::front},
    {"iq3_s", 256, 27, Half::front},   {"int4_32", 32, 6, Half::none},   {"int4_64", 64, 10, Half::none},
    {"int4_128", 128, 18, Half::none}, {"int8_32", 32, 10, Half::none},  {"int8_64", 64, 18, Half::none},
    {"int8_128", 128, 34, Half::none}, {"nf4_32", 32, 5, Half::none},    {"nf4_64", 64, 9, Half::none},
    {"nf4_128", 128, 17, Half::none},  {"fp4_32", 32, 5, Half::none},    {"fp4_64", 64, 9, Half::none},
    {"fp4_128", 128, 17, Half::none},  {"nvfp4_64", 64, 10, Half::none},
};

constexpr const BlockLayout &layout_of(PanelType type) { return kBlocks[static_cast<int>(type)]; }

// 32 inputs of a row, rounded to int8: x ~ scale * code.
struct alignas(64) RoundedBlock {
  int8_t codes[32];
  float scale;
  float sum;        // scale times the sum of the codes
  int32_t negated;  // minus the sum of the codes
  float halves[2];  // `sum` and `negated` of the first and the second 16
  int32_t negated_16[2];
  int32_t unused;
};

// The same with 15 bits: x ~ scale * (128 * upper + lower). For single rows, whose products wait for memory anyway.
struct alignas(64) FineBlock {
  int8_t upper[32], lower[32];
  float scale;
  float sum;
  int32_t negated;
  int32_t negated_16[2];
};

// The sums of the inputs of 256 columns, rounded in the same way: of every 16, then of every 32, then zeros.
struct alignas(64) FineSums {
  int8_t upper[32], lower[32];
  float scale;
};

// A rounded row. sums: [cols / 256]; not set where 256 does not divide the columns
struct FineRow {
  const FineBlock *blocks;  // [cols / 32]
  const FineSums *sums;
};

// Such rows at equal distances, in blocks and in sums.
struct FineRows {
  const FineBlock *blocks;
  const FineSums *sums;
  size_t block_stride, sum_stride;
  FineRow row(int i) const { return {blocks + i * block_stride, sums + i * sum_stride}; }
};

// Rounded rows one behind the other.
struct RoundedRows {
  const RoundedBlock *blocks;  // [rows, cols / 32]
  int cols;
  const RoundedBlock *row(int i) const { return blocks + static_cast<size_t>(i) * (cols / 32); }
};

}  // namespace bitsmith
