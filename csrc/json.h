// Strings for JSON.
#pragma once
#include <string>

#include "text.h"

namespace bringup {

// A JSON string with quotes. Control characters become spaces.
inline std::string json_text(const std::string& text) {
  Text out;
  out << '"';
  for (char c : text) {
    if (c == '"' || c == '\\')
      out << '\\' << c;
    else if (static_cast<unsigned char>(c) < 0x20)
      out << ' ';
    else
      out << c;
  }
  out << '"';
  return out.str();
}

}  // namespace bringup
