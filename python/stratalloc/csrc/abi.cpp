#include "abi.h"

#include <dlfcn.h>

namespace stratalloc_torch {

Abi abi;

namespace {

template <typename Function>
bool resolve(void* library, const char* name, Function& out, std::string& problem) {
  out = reinterpret_cast<Function>(dlsym(library, name));
  if (out != nullptr) {
    return true;
  }
  problem = std::string("it has no function ") + name;
  return false;
}

} // namespace

std::string load_abi(const char* path) {
  // Never closed: torch frees tensors until the process ends.
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* why = dlerror();
    return why != nullptr ? why : "dlopen failed";
  }
  Abi found;
  std::string problem;
#define X(name)                                                        \
  if (!resolve(library, "stratalloc_" #name, found.name, problem)) {   \
    return problem;                                                    \
  }
  STRATALLOC_TORCH_FUNCTIONS(X)
#undef X
  if (!resolve(library, "stratalloc_default", found.default_allocator, problem)) {
    return problem;
  }
  if (found.abi_version() != STRATALLOC_ABI_VERSION) {
    return "its ABI version is " + std::to_string(found.abi_version()) + ", this extension was compiled for " +
        std::to_string(STRATALLOC_ABI_VERSION);
  }
  abi = found;
  return "";
}

} // namespace stratalloc_torch
