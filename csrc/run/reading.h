// The ways to read matrices from memory, for products with a single row, and how fast each is here.
#pragma once

#include <memory>
#include <vector>

#include "matrix.h"

namespace bitsmith {

// The first is taken where nothing was measured.
constexpr Reading kReadings[] = {
    {2048, 8192, 1},   {2048, 8192, 2}, {1024, 4096, 1}, {1024, 3072, 1},
    {16384, 16384, 4}, {0, 0, 1},       {0, 0, 4},       {4096, 16384, 1},
};

// Groups of 16 rows of the next piece of a product with a single row, of those that are left. It waits for memory,
// which likes long pieces; the last ones are short, so that all threads end together.
constexpr int next_piece(int left, int threads) {
  constexpr int kLeast = 3;
  return left / (2 * threads) > kLeast ? left / (2 * threads) : kLeast;
}

// Bytes a second that products with a single row take in, one for each of kReadings. The matrices, all packed or all of
// floats, are multiplied one after the other, as generation does: as much of them is in the caches.
std::vector<double> reading_rates(const std::vector<std::shared_ptr<Matrix>> &matrices, Isa isa, Pool &pool);

}  // namespace bitsmith
