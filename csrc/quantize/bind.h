// Python's names for the quantizing kernels.
#pragma once

#include <nanobind/nanobind.h>

namespace bitsmith {

void bind_quantize(nanobind::module_ &m);
void bind_slab(nanobind::module_ &m);
void bind_columns(nanobind::module_ &m);
void bind_ladder(nanobind::module_ &m);
void bind_books(nanobind::module_ &m);
void bind_dense(nanobind::module_ &m);
void bind_trainable(nanobind::module_ &m);

}  // namespace bitsmith
