// The extension module `bitsmith._core`.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "isa.h"
#include "quantize/bind.h"
#include "run/bind.h"

namespace nb = nanobind;

NB_MODULE(_core, m) {
  nb::set_leak_warnings(false);  // what Python keeps in caches lives until the process ends
  m.doc() = "The C++ core of bitsmith; see bitsmith.native for what it offers.";
  m.def(
      "isa", [] { return std::string(bitsmith::isa_name(bitsmith::chosen_isa())); },
      "The instruction set that kernels run on. Raises ValueError where BITSMITH_ISA names none that is available.");
  m.def(
      "isas",
      [] {
        std::vector<std::string> names;
        for (bitsmith::Isa isa : bitsmith::available_isas()) names.emplace_back(bitsmith::isa_name(isa));
        return names;
      },
      "The instruction sets available here, poorest first.");
  bitsmith::bind_quantize(m);
  bitsmith::bind_run(m);
}
