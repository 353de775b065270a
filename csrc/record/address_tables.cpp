#include "record/address_tables.h"

#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <vector>

namespace bringup {
namespace {

// True for libraries that compute, compile, or belong to the C library. Their waits are not requested by the program.
bool is_left_alone(const std::string& library, const std::vector<std::string>& folders) {
  for (const std::string& folder : folders)
    if (library.compare(0, folder.size(), folder) == 0) return true;
  std::string file = library.substr(library.rfind('/') + 1);
  for (const char* start : {"libgomp", "libiomp", "libmkl", "libc.so", "libpthread", "ld-linux", "libstdc++", "libm.so",
                            "libdl.so", "librt.so", "linux-vdso", "libnss", "libresolv", "libtsan", "libasan", "libubsan"})
    if (file.rfind(start, 0) == 0) return true;
  return file.find("openblas") != std::string::npos;
}

void change(void** entry, void* to) {
  if (*entry == to) return;
  auto page = uintptr_t(sysconf(_SC_PAGESIZE));
  auto start = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(entry) & ~(page - 1));
  // The table may be read-only after loading. It stays writable, since another thread may be changing a neighbouring entry.
  if (mprotect(start, page, PROT_READ | PROT_WRITE) == 0) __atomic_store_n(entry, to, __ATOMIC_RELEASE);
}

#if defined(__x86_64__)
constexpr uint32_t kJumpSlot = R_X86_64_JUMP_SLOT, kGlobalData = R_X86_64_GLOB_DAT;
#elif defined(__aarch64__)
constexpr uint32_t kJumpSlot = R_AARCH64_JUMP_SLOT, kGlobalData = R_AARCH64_GLOB_DAT;
#else
constexpr uint32_t kJumpSlot = 0, kGlobalData = 0;  // no table is changed, so no wait is recorded
#endif

struct DynamicTable {
  const ElfW(Rela) * relocations[2] = {};  // for calls, for data
  size_t bytes[2] = {};
  const ElfW(Sym) * symbols = nullptr;
  const char* names = nullptr;

  DynamicTable(const dl_phdr_info& library, const ElfW(Dyn) * entry) {
    auto at = [&](ElfW(Addr) value) { return value < library.dlpi_addr ? value + library.dlpi_addr : value; };
    for (; entry->d_tag != DT_NULL; ++entry) {
      switch (entry->d_tag) {
        case DT_JMPREL:
          relocations[0] = reinterpret_cast<const ElfW(Rela)*>(at(entry->d_un.d_ptr));
          break;
        case DT_PLTRELSZ:
          bytes[0] = entry->d_un.d_val;
          break;
        case DT_RELA:
          relocations[1] = reinterpret_cast<const ElfW(Rela)*>(at(entry->d_un.d_ptr));
          break;
        case DT_RELASZ:
          bytes[1] = entry->d_un.d_val;
          break;
        case DT_SYMTAB:
          symbols = reinterpret_cast<const ElfW(Sym)*>(at(entry->d_un.d_ptr));
          break;
        case DT_STRTAB:
          names = reinterpret_cast<const char*>(at(entry->d_un.d_ptr));
          break;
        default:
          break;
      }
    }
  }

  void replace(ElfW(Addr) base, const Replacements& by) const {
    if (!symbols || !names) return;
    for (int table = 0; table < 2; ++table)
      for (size_t i = 0; relocations[table] && i < bytes[table] / sizeof(ElfW(Rela)); ++i) {
        const auto& relocation = relocations[table][i];
        auto type = uint32_t(ELF64_R_TYPE(relocation.r_info));
        if (kJumpSlot == 0 || (type != kJumpSlot && type != kGlobalData)) continue;
        auto replacement = by.find(names + symbols[ELF64_R_SYM(relocation.r_info)].st_name);
        if (replacement != by.end()) change(reinterpret_cast<void**>(base + relocation.r_offset), replacement->second);
      }
  }
};

struct Change {
  const std::vector<std::string>& folders_left_alone;
  const Replacements& (*replacements)(const std::string& library);
};

int change_library(dl_phdr_info* library, size_t, void* argument) {
  const Change& wanted = *static_cast<const Change*>(argument);
  std::string name = library->dlpi_name;  // "": the executable
  if (is_left_alone(name, wanted.folders_left_alone)) return 0;
  for (int i = 0; i < library->dlpi_phnum; ++i)
    if (library->dlpi_phdr[i].p_type == PT_DYNAMIC) {
      auto* entry = reinterpret_cast<const ElfW(Dyn)*>(library->dlpi_addr + library->dlpi_phdr[i].p_vaddr);
      DynamicTable(*library, entry).replace(library->dlpi_addr, wanted.replacements(name));
    }
  return 0;
}

}  // namespace

void replace_in_libraries(const std::vector<std::string>& folders_left_alone,
                          const Replacements& (*replacements)(const std::string& library)) {
  Change wanted{folders_left_alone, replacements};
  dl_iterate_phdr(&change_library, &wanted);
}

unsigned long long libraries_loaded() {
  unsigned long long loaded = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* library, size_t, void* result) {
        *static_cast<unsigned long long*>(result) = library->dlpi_adds;
        return 1;
      },
      &loaded);
  return loaded;
}

}  // namespace bringup
