// The whole extension as one translation unit: torch's headers are most of the time that compiling takes, and they are read
// once this way. Compiled by ../_build.py on the user's machine, against the user's torch.

#include "abi.cpp"
#include "allocator.cpp"
#include "errors.cpp"
#include "history.cpp"
#include "install.cpp"
#include "peers.cpp"
#include "pools.cpp"
#include "sharing.cpp"
#include "snapshot.cpp"
#include "statistics.cpp"
