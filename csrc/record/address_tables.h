// The tables of addresses through which libraries call the C library.
#pragma once
#include <string>
#include <unordered_map>
#include <vector>

namespace bringup {

using Replacements = std::unordered_map<std::string, void*>;  // name of a function -> its replacement

// Changes the tables of the libraries that are loaded now, except those in these folders and those that belong to the C library.
// `replacements` returns the replacements for the library at a path.
void replace_in_libraries(const std::vector<std::string>& folders_left_alone,
                          const Replacements& (*replacements)(const std::string& library));
unsigned long long libraries_loaded();  // the number of libraries loaded so far, including closed ones

}  // namespace bringup
