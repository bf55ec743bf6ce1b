// Arrays of numpy as the bindings read and write them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>

namespace bitsmith::quantize {

namespace nb = nanobind;

using Read = nb::ndarray<nb::ro, nb::device::cpu>;
using Write = nb::ndarray<nb::device::cpu>;

[[noreturn]] inline void refuse(const std::string &what) { throw std::invalid_argument(what); }

inline std::string text(int64_t number) { return std::to_string(number); }

// The data of an array without gaps, of this shape and type. Throws std::invalid_argument otherwise.
template <class T, class Array>
auto data_of(const Array &array, const char *name, std::initializer_list<int64_t> shape) {
  std::string wanted, found;
  bool fits = array.ndim() == shape.size();
  for (int64_t extent : shape) wanted += (wanted.empty() ? "" : ", ") + text(extent);
  for (size_t i = 0; i < array.ndim(); ++i) {
    const auto extent = static_cast<int64_t>(array.shape(i));
    found += (found.empty() ? "" : ", ") + text(extent);
    fits = fits && extent == shape.begin()[i];
  }
  if (!fits) refuse(std::string(name) + " has shape [" + found + "]; expected [" + wanted + "]");
  if (array.itemsize() != sizeof(T)) {
    refuse(std::string(name) + " has entries of " + text(array.itemsize()) + " bytes; expected " + text(sizeof(T)));
  }
  int64_t step = 1;
  for (size_t i = array.ndim(); i-- > 0;) {
    if (array.shape(i) != 1 && array.size() != 0 && array.stride(i) != step) {
      refuse(std::string(name) + " has gaps; expected a C-contiguous array");
    }
    step *= array.shape(i);
  }
  const void *data = array.data();
  if (reinterpret_cast<uintptr_t>(data) % alignof(T)) refuse(std::string(name) + " is not aligned to its entries");
  return data;
}

template <class T>
const T *read(const Read &array, const char *name, std::initializer_list<int64_t> shape) {
  return static_cast<const T *>(data_of<T>(array, name, shape));
}

template <class T>
T *write(const Write &array, const char *name, std::initializer_list<int64_t> shape) {
  return static_cast<T *>(const_cast<void *>(data_of<T>(array, name, shape)));
}

template <class T>
T *write(const std::optional<Write> &array, const char *name, std::initializer_list<int64_t> shape) {
  return array ? write<T>(*array, name, shape) : nullptr;
}

}  // namespace bitsmith::quantize
