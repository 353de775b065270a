// The tables of addresses through which libraries call the C library.
#pragma once
#include <string>
#include <unordered_map>
#include <vector>

namespace bringup {

using Replacements = std::unordered_map<std::string, void*>;  // name of a function -> what is called in its place

// Changes the tables of the libraries that are loaded now, except those in the folders and those that belong to the C
// library. `replacements` says what a library of this path is to call.
void replace_in_libraries(const std::vector<std::string>& folders_left_alone,
                          const Replacements& (*replacements)(const std::string& library));
unsigned long long libraries_loaded();  // so far, closed ones too

}  // namespace bringup
