// How the best pair of a book's two halves is found with few operations.
//
// A point of a code book is a pair: its first half and its second half. What a point loses is what its first half loses
// plus what its second half loses. So for each first half only the smallest loss of the second halves beside it counts.
// Points were chosen by their pattern, so that many first halves share many second halves: minima of pairs that occur
// often are computed once (greedy sharing of common parts, Paar 1997). IQ1 then needs 670 operations for 2,048 points.
#pragma once

#include <array>
#include <vector>

#include "books.h"

namespace bitsmith::quantize {

constexpr int kScan = 64;        // lanes of a scan: each has tables of its own
constexpr int kMostMins = 384;   // values that a program works on: losses of second halves, and minima of them
constexpr int kWordsOfHalf = 3;  // 32-bit words with a bit for each second half

struct BookProgram {
  // value = min(value one, value two), behind the values so far. Both are offsets, numbers of values times `kScan`.
  struct Step {
    uint16_t one, two;
  };
  // The second halves beside a first half: minima of `mins[begin .. begin + count)`, again offsets.
  struct Row {
    uint16_t first, begin, count;
  };

  int levels;  // that a field of a point has: 3 (points of eight weights) or 8
  int side;    // losses of a quarter: 9 or 8
  int half;    // of a half: their square
  std::vector<Step> steps;
  std::vector<Row> rows;  // by count, so that loops over them are predicted well
  std::vector<uint16_t> mins;
  std::vector<std::array<uint32_t, kWordsOfHalf>> members;  // [half]: which second halves are beside a first half
  std::vector<uint16_t> numbers;                            // [half * half]: number of a point; 0 where there is none
};

// Made at first use.
const BookProgram &book_program(Book book);

}  // namespace bitsmith::quantize
