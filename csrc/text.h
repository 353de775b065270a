// Text that is put together from its parts.
#pragma once
#include <charconv>
#include <concepts>
#include <string>
#include <string_view>

namespace bringup {

// Not a stream of the standard library, whose objects break where a toolchain links that library into every extension:
// two copies of its locales are in the process then.
class Text {
 public:
  Text& operator<<(std::string_view part) {
    text_ += part;
    return *this;
  }
  Text& operator<<(char part) {
    text_ += part;
    return *this;
  }
  Text& operator<<(std::integral auto number) { return *this << number_text(number); }
  Text& operator<<(double number) { return *this << number_text(number, std::chars_format::general, 6); }  // as %g

  const std::string& str() const { return text_; }

 private:
  std::string text_;
  char digits_[32];

  std::string_view number_text(auto... number) {
    return {digits_, size_t(std::to_chars(digits_, digits_ + sizeof digits_, number...).ptr - digits_)};
  }
};

}  // namespace bringup
