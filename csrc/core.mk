# The core as one object per file, for those who change it: `make core`. Releases compile core.cpp as a whole (setup.py).
PYTHON ?= python3
BUILD := build/core
TORCH := $(shell $(PYTHON) -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
SUFFIX := $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
CORE := src/bringup/_core$(SUFFIX)
REPLAY := src/bringup/_replay$(SUFFIX)
OBJECTS := $(patsubst csrc/%.cpp,$(BUILD)/%.o,$(filter-out csrc/record/timeline.cpp,$(wildcard csrc/*/*.cpp)))
PRECOMPILED := $(BUILD)/precompiled.h.gch
COMPILE := $(CXX) @csrc/flags -fPIC -MMD -MP -isystem $(TORCH)/include -isystem $(TORCH)/include/kineto
.DELETE_ON_ERROR:
.PHONY: all

all: $(CORE) $(REPLAY)

# Linked aside: processes may be using the old core.
$(CORE): $(OBJECTS)
	$(CXX) -shared $^ -L$(TORCH)/lib -Wl,-rpath,$(TORCH)/lib -lc10 -ltorch_cpu -ltorch -o $(BUILD)/core.so
	mv $(BUILD)/core.so $@

# The replay is a library of its own, which needs nothing of torch.
$(REPLAY): csrc/record/timeline.cpp csrc/record/rows.h csrc/record/rows.inc csrc/flags csrc/core.mk
	@mkdir -p $(BUILD)
	$(CXX) @csrc/flags -fPIC -shared $< -o $(BUILD)/replay.so
	mv $(BUILD)/replay.so $@

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
