// The ggml types whose codes stand for eight weights at once: IQ1, IQ2 and IQ3. What their code books are.
//
// Weights of a code are its levels times the scale of a block. A scale is d * unit * (2 q + 1), where d belongs to a
// super-block of 256 weights and q is a small integer. Codes hold, from the lowest bits on: the number of a point (two
// of them where points have four weights), then a bit for each negative weight of signed books. The codes of IQ1_M hold
// one bit that says whether levels are shifted by -1/8 instead of 1/8; in IQ1_S blocks of 32 weights are shifted.
#pragma once

#include <cstdint>

#include "code_books.h"
#include "types.h"

namespace bitsmith::quantize {

// In the order of `kBooks`.
enum class Book { iq1_s, iq1_m, iq2_xxs, iq2_xs, iq2_s, iq3_xxs, iq3_s };

enum class Shift { none, by_block, by_code };

// bytes: of a super-block; index_bits, count: of points; width: weights of a point; block: weights that share a scale
// top: largest integer q; levels: [4 or 8]; typical: root mean square of the points' weights
// even: the number of negative weights of a code is even
struct BookFacts {
  const char *name;
  int bytes;
  const uint16_t *points;
  int count, index_bits, width, block, top;
  float unit, typical;
  bool is_signed, even;
  Shift shift;
  float levels[8];
};

constexpr BookFacts kBooks[] = {
    {"iq1_s", 50, kIq1Points, 2048, 11, 8, 32, 7, 1.0f, 0.77f, false, false, Shift::by_block, {-1, 0, 1}},
    {"iq1_m", 56, kIq1Points, 2048, 11, 8, 16, 7, 1.0f, 0.77f, false, false, Shift::by_code, {-1, 0, 1}},
    {"iq2_xxs", 66, kIq2XxsPoints, 256, 8, 8, 32, 15, 0.125f, 23.1f, true, true, Shift::none, {8, 25, 43}},
    {"iq2_xs", 74, kIq2XsPoints, 512, 9, 8, 16, 15, 0.125f, 24.2f, true, true, Shift::none, {8, 25, 43}},
    {"iq2_s", 82, kIq2SPoints, 1024, 10, 8, 16, 15, 0.125f, 24.4f, true, false, Shift::none, {8, 25, 43}},
    {"iq3_xxs",
     98,
     kIq3XxsPoints,
     256,
     8,
     4,
     32,
     15,
     0.25f,
     30.8f,
     true,
     true,
     Shift::none,
     {4, 12, 20, 28, 36, 44, 52, 62}},
    {"iq3_s", 110, kIq3SPoints, 512, 9, 4, 32, 15, 1.0f, 7.59f, true, false, Shift::none, {1, 3, 5, 7, 9, 11, 13, 15}},
};

constexpr int kBookCount = 7;
constexpr int kSuper = 256, kVector = 8, kVectors = kSuper / kVector;
constexpr float kShift = 0.125f;

constexpr const BookFacts &facts(Book book) { return kBooks[static_cast<int>(book)]; }

// Where codes and parameters go; null: not wanted.
struct BookCodes {
  int32_t *codes;   // [rows, cols / 8]
  uint16_t *d;      // [rows, cols / 256], float16
  uint8_t *scales;  // [rows, cols / block]
  uint8_t *shifts;  // [rows, cols / 32], of IQ1_S: 1 where levels are shifted by -1/8
};

// Scales that are given, [rows, cols / block], and whether blocks are shifted by -1/8.
struct BookScales {
  const float *scales;
  const uint8_t *shifts;
};

// Kernels of one instruction set.
struct BookKernels {
  // Scales and codes of float32 weights; returns the largest magnitude.
  float (*round)(Book, const Weights &, const BookCodes &);
  // The codes nearest to float32 weights with given scales. cols: a multiple of 8; scales: one for every `block`
  // columns
  void (*nearest)(Book, const Weights &, int block, const BookScales &, int32_t *codes);
  // ggml blocks for all rows.
  Tally (*encode)(Book, const Weights &, uint8_t *out);
};

}  // namespace bitsmith::quantize
