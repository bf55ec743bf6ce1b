// The extension module `bitsmith.system._core`.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bandwidth.h"
#include "isa.h"
#include "quantize/bind.h"
#include "run/bind.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace nb = nanobind;

namespace {

// Chunks of a megabyte come and go thousands of times; given back to the system each time, their pages are cleared
// anew.
void hold_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
  mallopt(M_TOP_PAD, 4 << 20);
#endif
}

}  // namespace

NB_MODULE(_core, m) {
  nb::set_leak_warnings(false);  // what Python keeps in caches lives until the process ends
  m.doc() = "The C++ core of bitsmith; see bitsmith.system.core for what it offers.";
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
  m.def("hold_memory", &hold_memory,
        "Keep freed memory, some tens of megabytes, for the whole process: for programs that own theirs.");
  m.def("read_bandwidth", &bitsmith::read_bandwidth, nb::arg("threads"), nb::arg("bytes"), nb::arg("passes"),
        nb::call_guard<nb::gil_scoped_release>(),
        "Bytes a second that threads together read from a buffer of about so many bytes, the best of some passes.");
  bitsmith::bind_quantize(m);
  bitsmith::bind_slab(m);
  bitsmith::bind_columns(m);
  bitsmith::bind_ladder(m);
  bitsmith::bind_books(m);
  bitsmith::bind_dense(m);
  bitsmith::bind_trainable(m);
  bitsmith::bind_run(m);
}
