// A driver whose device does not open.
#define bringup_driver_entry null_driver_entry
#include "null_driver.cpp"
#undef bringup_driver_entry

extern "C" const bringup_driver* bringup_driver_entry() {
  static const bringup_driver driver = [] {
    bringup_driver own = *null_driver_entry();
    own.name = "unopened";
    own.open = [](int, const bringup_config*, bringup_device**) -> int { return BRINGUP_FAILED; };
    own.last_error = [](bringup_device*, const void** about) -> const char* {
      *about = nullptr;
      return "its cable is loose";
    };
    return own;
  }();
  return &driver;
}
