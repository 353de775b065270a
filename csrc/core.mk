# The core as one object per file, for those who change it: `make core`. Releases compile core.cpp as a whole (setup.py).
PYTHON ?= python3
BUILD := build/core
TORCH := $(shell $(PYTHON) -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
CORE := src/bringup/_core$(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
OBJECTS := $(patsubst csrc/%.cpp,$(BUILD)/%.o,$(wildcard csrc/*/*.cpp))
PRECOMPILED := $(BUILD)/precompiled.h.gch
COMPILE := $(CXX) @csrc/flags -fPIC -MMD -MP -isystem $(TORCH)/include -isystem $(TORCH)/include/kineto
.DELETE_ON_ERROR:

# Linked aside: processes may be using the old core.
$(CORE): $(OBJECTS)
	$(CXX) -shared $^ -L$(TORCH)/lib -Wl,-rpath,$(TORCH)/lib -lc10 -ltorch_cpu -ltorch @csrc/link_flags -o $(BUILD)/core.so
	mv $(BUILD)/core.so $@

$(BUILD)/%.o: csrc/%.cpp $(PRECOMPILED) csrc/flags csrc/core.mk $(TORCH)/version.py
	@mkdir -p $(@D)
	$(COMPILE) -I$(BUILD) -include precompiled.h -c $< -o $@

# A virtual chip needs nothing of torch.
$(BUILD)/drivers/%.o: csrc/drivers/%.cpp csrc/flags csrc/core.mk
	@mkdir -p $(@D)
	$(COMPILE) -c $< -o $@

$(PRECOMPILED): csrc/precompiled.h csrc/flags csrc/core.mk $(TORCH)/version.py
	@mkdir -p $(@D)
	$(COMPILE) -x c++-header $< -o $@

-include $(OBJECTS:.o=.d)
