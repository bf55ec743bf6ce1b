// The instruction sets that kernels are compiled for, and the choice among them at run time.
#pragma once

#include <string>
#include <vector>

namespace bitsmith {

// The later, the better, where a processor has several. x86-64 has those with avx and amx in their names, ARM has
// dotprod. avxvnni is avx2 with VNNI, and avx512bf16 has VBMI too; each other one of x86-64 contains those before it,
// but avxvnni.
enum class Isa { generic, avx2, avxvnni, avx512, avx512vnni, avx512bf16, amx, dotprod };

// Those that this build has and this processor runs, poorest first.
std::vector<Isa> available_isas();

// The best of them, or the one that the environment variable BITSMITH_ISA names. Read once.
// Throws std::invalid_argument where it names one that is not available.
Isa chosen_isa();

const char *isa_name(Isa isa);

// The instruction set of that name. Throws std::invalid_argument, listing those available, where it is none of them.
Isa isa_named(const std::string &name);

}  // namespace bitsmith
