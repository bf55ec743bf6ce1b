// Rows of weights through the search of code books, super-block by super-block. Compiled for each instruction set.
#include "books.h"

#include <memory>

#include "book_nearest.h"
#include "book_pack.h"
#include "emit.h"
#include "read.h"

namespace bitsmith::quantize::BITSMITH_ISA {
namespace {

constexpr float kLargest = 1e15f;  // as in kernel.cpp

// Calls done(block, weights, row, super-block of the row) for all super-blocks, one column of them after the other, so
// that what depends on the columns' weights is computed once. Returns the largest magnitude.
template <Book B, class Done>
float by_supers(const Weights &w, const Done &done) {
  const int64_t across = w.cols / kSuper;
  const int size = w.type == Float::f32 ? 4 : 2;
  const auto block = std::make_unique<SuperBlock<B>>();
  alignas(64) float raw[kSuper], x[kSuper];
  Ints largest{};
  for (int64_t at = 0; at < across; ++at) {
    if (at == 0 || w.columns) block->set_columns(w.columns ? w.columns + at * kSuper : nullptr);
    for (int64_t row = 0; row < w.rows; ++row) {
      const uint8_t *from = w.data + ((w.order ? w.order[row] : row) * w.cols + at * kSuper) * size;
      read_weights(raw, from, w.type, kSuper, largest);
      for (int i = 0; i < kSuper; i += kLanes) store(x + i, clip(load<Floats>(raw + i), -kLargest, kLargest) + 0.0f);
      block->search(x);
      done(*block, raw, row, at);
    }
  }
  int32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits = largest[lane] > bits ? largest[lane] : bits;
  float found;
  std::memcpy(&found, &bits, sizeof found);
  return found;
}

template <Book B>
float round_book(const Weights &w, const BookCodes &to) {
  const int64_t across = w.cols / kSuper;
  return by_supers<B>(w, [&](const SuperBlock<B> &block, const float *, int64_t row, int64_t at) {
    const int64_t place = row * across + at;
    std::memcpy(to.codes + place * kVectors, block.codes, sizeof block.codes);
    to.d[place] = f16_bits(block.d);
    std::memcpy(to.scales + place * kBlocks<B>, block.scales, kBlocks<B>);
    if (to.shifts) std::memcpy(to.shifts + place * 8, block.shifts, 8);
  });
}

template <Book B>
Tally encode_book(const Weights &w, uint8_t *out) {
  const int64_t across = w.cols / kSuper;
  const Levels<B> levels;
  Lost lost;
  Tally tally;
  tally.largest = by_supers<B>(w, [&](const SuperBlock<B> &block, const float *raw, int64_t row, int64_t at) {
    pack_super<B>(out + (row * across + at) * facts(B).bytes, block.codes, f16_bits(block.d), block.scales,
                  block.shifts);
    for (int v = 0; v < kVectors; v += 2) {
      const float scale = block.d * (facts(B).unit * static_cast<float>(2 * block.scales[v / kInBlock<B>] + 1));
      for (int i = 0; i < 16; i += kLanes) {
        const Floats x = load<Floats>(raw + v * kVector + i);
        lost.error.add(v * kVector + i, levels.of(block.codes + v, block.shifts[v / 4], i) * scale - x);
        lost.weight.add(v * kVector + i, x);
      }
    }
  });
  tally.squared_error = lost.error.total();
  tally.squared_weight = lost.weight.total();
  return tally;
}

template <Book B>
void nearest_book(const Weights &w, int block, const BookScales &given, int32_t *codes) {
  const int64_t vectors = w.cols / kVector;
  const auto norms = std::make_unique<Norms<B>>();
  const auto vector = std::make_unique<Vector<B>>();
  const auto *weights = reinterpret_cast<const float *>(w.data);
  for (int64_t v = 0; v < vectors; ++v) {
    const float *columns = w.columns ? w.columns + v * kVector : nullptr;
    if (columns) norms->set(columns);
    for (int64_t row = 0; row < w.rows; ++row) {
      float x[kVector];
      for (int i = 0; i < kVector; ++i) {
        const float given_x = weights[row * w.cols + v * kVector + i];
        x[i] = std::min(std::max(given_x, -kLargest), kLargest) + 0.0f;
        const float size = std::fabs(x[i]);
        vector->sizes[i] = columns ? size * columns[i] : size;
      }
      vector->set(x, columns, *norms);
      const int64_t at = row * (w.cols / block) + v * kVector / block;
      const float scale = given.scales[at];
      const int side = given.shifts ? given.shifts[at] : 0;
      codes[row * vectors + v] = vector->code(vector->best(scale, side));
    }
  }
}

template <class Result, class Call, int... I>
Result dispatch(Book book, const Call &call, std::integer_sequence<int, I...>) {
  Result (*const calls[])(const Call &) = {
      [](const Call &each) { return each.template operator()<static_cast<Book>(I)>(); }...};
  return calls[static_cast<int>(book)](call);
}

constexpr auto kAllBooks = std::make_integer_sequence<int, kBookCount>();

struct RoundCall {
  const Weights &w;
  const BookCodes &to;
  template <Book B>
  float operator()() const {
    return round_book<B>(w, to);
  }
};

struct EncodeCall {
  const Weights &w;
  uint8_t *out;
  template <Book B>
  Tally operator()() const {
    return encode_book<B>(w, out);
  }
};

struct NearestCall {
  const Weights &w;
  int block;
  const BookScales &given;
  int32_t *codes;
  template <Book B>
  void operator()() const {
    nearest_book<B>(w, block, given, codes);
  }
};

float round(Book book, const Weights &w, const BookCodes &to) {
  return dispatch<float>(book, RoundCall{w, to}, kAllBooks);
}

void nearest(Book book, const Weights &w, int block, const BookScales &given, int32_t *codes) {
  dispatch<void>(book, NearestCall{w, block, given, codes}, kAllBooks);
}

Tally encode(Book book, const Weights &w, uint8_t *out) { return dispatch<Tally>(book, EncodeCall{w, out}, kAllBooks); }

}  // namespace

extern const BookKernels kBookKernels;
const BookKernels kBookKernels{round, nearest, encode};

}  // namespace bitsmith::quantize::BITSMITH_ISA
