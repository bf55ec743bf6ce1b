#pragma once

#include <nanobind/nanobind.h>

namespace bitsmith {
void bind_run(nanobind::module_ &m);
void bind_model(nanobind::module_ &m);
void bind_stored(nanobind::module_ &m);
void bind_passes(nanobind::module_ &m);
}  // namespace bitsmith
