#include "book_program.h"

#include <algorithm>
#include <bitset>
#include <memory>

namespace bitsmith::quantize {
namespace {

constexpr int kLeast = 3;  // first halves that must share a minimum for it to be kept
constexpr size_t kMostRows = 81;
using Rows = std::bitset<kMostRows>;  // the first halves beside which a value stands

// The number of a half: its fields as digits, the first weight lowest.
int half_of(const BookFacts &book, int fields) {
  if (book.width == 4) return (fields & 7) + 8 * (fields >> 4 & 7);
  int number = 0;
  for (int i = 3; i >= 0; --i) number = 3 * number + (fields >> (2 * i) & 3);
  return number;
}

// Takes out the pair that stands beside the most first halves, until none stands beside enough.
void share(std::vector<Rows> &values, std::vector<BookProgram::Step> &steps) {
  while (static_cast<int>(values.size()) < kMostMins) {
    size_t most = kLeast - 1, one = 0, two = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      if (values[i].count() <= most) continue;
      for (size_t j = i + 1; j < values.size(); ++j) {
        const size_t both = (values[i] & values[j]).count();
        if (both > most) most = both, one = i, two = j;
      }
    }
    if (most < kLeast) return;
    const Rows both = values[one] & values[two];
    values[one] &= ~both;
    values[two] &= ~both;
    values.push_back(both);
    steps.push_back({static_cast<uint16_t>(one * kScan), static_cast<uint16_t>(two * kScan)});
  }
}

BookProgram made(const BookFacts &book) {
  BookProgram program;
  program.levels = book.width == 8 ? 3 : 8;
  program.side = book.width == 8 ? 9 : 8;
  program.half = program.side * program.side;
  const auto half = static_cast<size_t>(program.half);
  program.numbers.assign(half * half, 0);
  program.members.assign(half, {});
  std::vector<Rows> values(half);
  for (int i = 0; i < book.count; ++i) {
    const auto first = static_cast<size_t>(half_of(book, book.points[i] & 255));
    const auto second = static_cast<size_t>(half_of(book, book.points[i] >> 8));
    program.numbers[first * half + second] = static_cast<uint16_t>(i);
    program.members[first][second / 32] |= 1u << (second % 32);
    values[second].set(first);
  }
  share(values, program.steps);
  for (size_t first = 0; first < half; ++first) {
    BookProgram::Row row{static_cast<uint16_t>(first), static_cast<uint16_t>(program.mins.size()), 0};
    for (size_t i = 0; i < values.size(); ++i) {
      if (!values[i][first]) continue;
      program.mins.push_back(static_cast<uint16_t>(i * kScan));
      ++row.count;
    }
    if (row.count) program.rows.push_back(row);
  }
  std::stable_sort(program.rows.begin(), program.rows.end(),
                   [](const auto &a, const auto &b) { return a.count < b.count; });
  return program;
}

template <int I>
const BookProgram &kept() {
  static const BookProgram program = made(kBooks[I]);
  return program;
}

}  // namespace

const BookProgram &book_program(Book book) {
  switch (book) {
    case Book::iq1_s:
    case Book::iq1_m: return kept<static_cast<int>(Book::iq1_s)>();
    case Book::iq2_xxs: return kept<static_cast<int>(Book::iq2_xxs)>();
    case Book::iq2_xs: return kept<static_cast<int>(Book::iq2_xs)>();
    case Book::iq2_s: return kept<static_cast<int>(Book::iq2_s)>();
    case Book::iq3_xxs: return kept<static_cast<int>(Book::iq3_xxs)>();
    default: return kept<static_cast<int>(Book::iq3_s)>();
  }
}

}  // namespace bitsmith::quantize
