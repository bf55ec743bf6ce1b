// Products of dense matrices, compiled for each instruction set; torch's are the definition, see `add_products` of
// calibration/stats.py. Sums have a fixed order, whatever the number of threads.
#include "dense.h"

#include <algorithm>

#include "vectors.h"

namespace bitsmith::quantize::BITSMITH_ISA {
namespace {

using namespace bitsmith::BITSMITH_ISA;

constexpr int kTerms = 128;                                  // that are worked on together
constexpr int kWide = 2;                                     // vectors of a strip whose sums stay in registers
constexpr int kColumns = kLanes == 16 ? 12 : 6;              // columns whose sums stay in registers
constexpr int kPart = std::min(kDenseStrip, kWide *kLanes);  // columns of a strip that are worked on together

// Some columns of a row, float32 [kDenseStrip]; zero beyond the last column.
void row_of(const float *x, const float *less, int wide, float *to) {
  if (wide < kDenseStrip) std::fill(to + wide, to + kDenseStrip, 0.0f);
  if (!less) {
    std::copy_n(x, wide, to);
    return;
  }
  for (int i = 0; i < wide; ++i) to[i] = x[i] - less[i];
}

// Products of single float32.
struct Single {
  typedef Floats Vector;
  static constexpr int kTogether = 1;

  static BITSMITH_INLINE Vector broadcast(const uint32_t *from) {
    float value;
    std::memcpy(&value, from, 4);
    return splat(value);
  }
  static BITSMITH_INLINE Floats add(Vector a, Vector b, Floats sum) { return fma(a, b, sum); }

  // rows as terms
  static void terms_of(const float (*row)[kDenseStrip], uint32_t *to) { std::memcpy(to, row[0], sizeof row[0]); }
};

#if defined(__AVX512BF16__)
// Products of pairs of bfloat16, added in float32.
struct Pair {
  typedef __m512bh Vector;
  static constexpr int kTogether = 2;

  static BITSMITH_INLINE Vector broadcast(const uint32_t *from) {
    int32_t pair;
    std::memcpy(&pair, from, 4);
    return as<__m512bh>(_mm512_set1_epi32(pair));
  }
  static BITSMITH_INLINE Floats add(Vector a, Vector b, Floats sum) { return _mm512_dpbf16_ps(sum, a, b); }

  static BITSMITH_INLINE __m512i rounded(const float *from) {
    return _mm512_cvtepu16_epi32(as<__m256i>(_mm512_cvtneps_pbh(load<Floats>(from))));
  }

  static void terms_of(const float (*rows)[kDenseStrip], uint32_t *to) {
    for (int i = 0; i < kDenseStrip; i += 16) {
      store(to + i, _mm512_or_si512(rounded(rows[0] + i), _mm512_slli_epi32(rounded(rows[1] + i), 16)));
    }
  }
};
#endif

template <class Product>
void pack_columns(const float *x, const float *less, int64_t rows, int64_t cols, int64_t first, uint32_t *strip) {
  constexpr int kTogether = Product::kTogether;
  const int wide = static_cast<int>(std::min<int64_t>(kDenseStrip, cols - first));
  alignas(64) float lines[kTogether][kDenseStrip];
  for (int64_t row = 0; row < rows; row += kTogether, strip += kDenseStrip) {
    for (int i = 0; i < kTogether; ++i) {
      const int64_t at = (row + i) * cols + first;
      if (row + i < rows) {
        row_of(x + at, less ? less + at : nullptr, wide, lines[i]);
      } else {
        std::fill_n(lines[i], kDenseStrip, 0.0f);
      }
    }
    Product::terms_of(lines, strip);
  }
}

// product[c, ..] += left[.., c]^T right[.., part] for C columns
template <class Product, int C>
BITSMITH_INLINE void tile(const uint32_t *left, const uint32_t *right, int64_t terms, float *product) {
  typedef typename Product::Vector Vector;
  Floats sums[C][kWide];
#pragma GCC unroll 12
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 2
    for (int v = 0; v < kWide; ++v) sums[c][v] = load<Floats>(product + c * kDenseStrip + v * kLanes);
  for (int64_t i = 0; i < terms; ++i, left += kDenseStrip, right += kDenseStrip) {
    Vector own[kWide];
#pragma GCC unroll 2
    for (int v = 0; v < kWide; ++v) own[v] = load<Vector>(right + v * kLanes);
#pragma GCC unroll 12
    for (int c = 0; c < C; ++c) {
      const Vector factor = Product::broadcast(left + c);
#pragma GCC unroll 2
      for (int v = 0; v < kWide; ++v) sums[c][v] = Product::add(own[v], factor, sums[c][v]);
    }
  }
#pragma GCC unroll 12
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 2
    for (int v = 0; v < kWide; ++v) store(product + c * kDenseStrip + v * kLanes, sums[c][v]);
}

template <class Product>
void multiply(const uint32_t *left, const uint32_t *right, int64_t terms, float *product) {
  constexpr int kRest = kDenseStrip % kColumns;
  std::fill_n(product, kDenseStrip * kDenseStrip, 0.0f);
  for (int64_t first = 0; first < terms; first += kTerms) {
    const int64_t count = std::min<int64_t>(kTerms, terms - first);
    const uint32_t *from = left + first * kDenseStrip;
    for (int part = 0; part < kDenseStrip; part += kPart) {
      const uint32_t *own = right + first * kDenseStrip + part;
      int c = 0;
      for (; c + kColumns <= kDenseStrip; c += kColumns) {
        tile<Product, kColumns>(from + c, own, count, product + c * kDenseStrip + part);
      }
      tile<Product, kRest>(from + c, own, count, product + c * kDenseStrip + part);
    }
  }
}

template <class Product>
constexpr DenseKernels kernels_of() {
  return {pack_columns<Product>, multiply<Product>, Product::kTogether};
}

}  // namespace

extern const DenseKernels kDenseKernels, kRoundedKernels;
const DenseKernels kDenseKernels = kernels_of<Single>();
#if defined(__AVX512BF16__)
const DenseKernels kRoundedKernels = kernels_of<Pair>();
#else
const DenseKernels kRoundedKernels{};
#endif

}  // namespace bitsmith::quantize::BITSMITH_ISA
