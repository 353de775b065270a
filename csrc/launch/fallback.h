// The table of operators and dtypes that the chip does not support. Its rows come from the chip file.
#pragma once
#include "launch/signature.h"

namespace bringup {

enum class Where : uint8_t { Chip, Host };

// Looks up where a call runs, by its operator and the dtype that it computes in.
Where where_of(const Signature& signature);
// The dtypes of an operator that run on the host, as bits. Each Op stores its own.
uint64_t dtypes_on_host(const std::string& op);

// Raises an error if the user allows no fallback (--strict).
void refuse_if_strict(const Signature& signature, const std::string& chip);
// The same for an operator on sparse tensors, if the chip has no sparse kernels for the dtype.
void refuse_sparse_if_strict(const std::string& op, c10::ScalarType dtype, const std::string& chip);

}  // namespace bringup
