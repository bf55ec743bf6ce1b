// How fast memory can be read: the ceiling of a decoder, which reads all its weights for every token.
#pragma once

#include <cstddef>

namespace bitsmith {

// Bytes a second that `threads` threads together read from a buffer of about `bytes` bytes, well beyond the caches: the
// best of `passes` passes, which read in the ways of run/reading.h, one after the other. Takes that much memory
// meanwhile; throws std::bad_alloc where there is not so much.
double read_bandwidth(int threads, size_t bytes, int passes);

}  // namespace bitsmith
