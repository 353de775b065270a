// A driver that lacks entries which every driver needs.
#define bringup_driver_entry null_driver_entry
#include "null_driver.cpp"
#undef bringup_driver_entry

extern "C" const bringup_driver* bringup_driver_entry() {
  static const bringup_driver driver = [] {
    bringup_driver own = *null_driver_entry();
    own.name = "partial";
    own.copy_d2d = nullptr;
    own.launch_host = nullptr;
    return own;
  }();
  return &driver;
}
