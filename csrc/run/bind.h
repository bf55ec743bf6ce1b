#pragma once

#include <nanobind/nanobind.h>

namespace bitsmith {
void bind_run(nanobind::module_ &m);
}
