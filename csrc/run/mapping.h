// A file's bytes in memory, which survive that another program cuts the file short.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitsmith {

// Maps a whole file for reading. A page that the file no longer has, or that cannot be read, would end the process with
// SIGBUS. Instead the rest of the mapping from that page on becomes zeros, and `lost` says so: results since then are
// worthless. The handler of SIGBUS is installed with the first mapping; it passes on what lies in no mapping.
class Mapping {
 public:
  // The descriptor may be closed afterwards. Throws std::runtime_error where the file cannot be mapped.
  Mapping(int descriptor, size_t size);
  ~Mapping();
  Mapping(const Mapping &) = delete;
  Mapping &operator=(const Mapping &) = delete;

  const uint8_t *data() const { return data_; }
  size_t size() const { return size_; }
  bool lost() const;

 private:
  const uint8_t *data_;
  size_t size_;
  int slot_;
};

}  // namespace bitsmith
