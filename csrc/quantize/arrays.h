// Arrays of numpy as the bindings read and write them: checks of their shapes and types.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>

#include "types.h"

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

inline Float float_named(const std::string &name) {
  if (name == "f32") return Float::f32;
  if (name == "f16") return Float::f16;
  if (name == "bf16") return Float::bf16;
  refuse("weights are read from f32, f16 or bf16, not from " + name);
}

// The weights of columns, float32 [cols].
inline const float *columns_of(const std::optional<Read> &columns, int64_t cols) {
  if (!columns) return nullptr;
  if (columns->dtype() != nb::dtype<float>()) refuse("the column weights are not float32");
  return read<float>(*columns, "columns", {cols});
}

// Stored weights, uint8 [rows, bytes], and the order of their rows.
inline Weights stored_weights(const Read &data, const std::string &type, const std::optional<Read> &order,
                              int64_t multiple) {
  if (data.ndim() != 2) refuse("the weights have " + text(data.ndim()) + " dimensions; expected [rows, bytes]");
  const Float from = float_named(type);
  const int64_t size = from == Float::f32 ? 4 : 2;
  const auto rows = static_cast<int64_t>(data.shape(0)), bytes = static_cast<int64_t>(data.shape(1));
  if (bytes % size) refuse("a row of " + text(bytes) + " bytes is no whole number of weights");
  if (bytes / size % multiple || !bytes) {
    refuse("rows of " + text(bytes / size) + " weights do not divide into blocks of " + text(multiple));
  }
  const int64_t *rows_in_order = order ? read<int64_t>(*order, "order", {rows}) : nullptr;
  for (int64_t i = 0; rows_in_order && i < rows; ++i) {
    if (rows_in_order[i] < 0 || rows_in_order[i] >= rows) {
      refuse("row " + text(rows_in_order[i]) + " in the order of " + text(rows) + " rows");
    }
  }
  return {read<uint8_t>(data, "data", {rows, bytes}), from, rows, bytes / size, rows_in_order, nullptr};
}

}  // namespace bitsmith::quantize
