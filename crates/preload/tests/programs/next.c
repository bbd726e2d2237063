/* A library that is opened, and asks for a function that only a library behind it has. Whoever is taken for the caller decides whether it is
   found: the libraries behind this one are not in the search order of the whole process. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

#ifdef BEHIND
int only_behind(void) { return 42; }
#else
int ask(int default_order)
{
    int (*found)(void) = (int (*)(void))dlsym(default_order ? RTLD_DEFAULT : RTLD_NEXT, "only_behind");
    return found ? found() : -1;
}
#endif
