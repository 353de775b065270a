// What the chip leaves to the host: a table whose rows are the chip file's.
#pragma once
#include "launch/signature.h"

namespace bringup {

enum class Where : uint8_t { Chip, Host };

// Where the table wants this call, by its operator and the dtype that it computes in.
Where where_of(const Signature& signature);
// The dtypes of an operator that have a row for the host, as bits: each Op keeps its own.
uint64_t dtypes_on_host(const std::string& op);

// Raises if the user wants no fallback (--strict).
void refuse_if_strict(const Signature& signature, const std::string& chip);

}  // namespace bringup
