// The ways to read matrices from memory, for products with a single row, and how fast each is here.
#pragma once

#include <memory>
#include <vector>

#include "matrix.h"

namespace bitsmith {

// The first is taken where nothing was measured.
constexpr Reading kReadings[] = {
    {1024, 4096, 1}, {1024, 3072, 1}, {2048, 8192, 1}, {2048, 8192, 2}, {16384, 16384, 4}, {0, 0, 1}, {0, 0, 4},
};

// Bytes a second that products with a single row take in, one for each of kReadings. The matrices, all packed or all of
// floats, are read piece by piece, as generation reads them: as much of them is in the caches.
std::vector<double> reading_rates(const std::vector<std::shared_ptr<Matrix>> &matrices, Isa isa, Pool &pool);

}  // namespace bitsmith
