/*
 * What the headers of glibc 2.38 and later have programs call where earlier ones have them call functions
 * of C99. The difference, numbers in binary, is nothing that Xen's tools take. Linked into each of them, they
 * run with an older glibc, too. Compiled for C99, in which the headers leave these names alone.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

long __isoc23_strtol(const char *text, char **end, int base)
{
    return strtol(text, end, base);
}

unsigned long __isoc23_strtoul(const char *text, char **end, int base)
{
    return strtoul(text, end, base);
}

long long __isoc23_strtoll(const char *text, char **end, int base)
{
    return strtoll(text, end, base);
}

unsigned long long __isoc23_strtoull(const char *text, char **end, int base)
{
    return strtoull(text, end, base);
}

intmax_t __isoc23_strtoimax(const char *text, char **end, int base)
{
    return strtoimax(text, end, base);
}

uintmax_t __isoc23_strtoumax(const char *text, char **end, int base)
{
    return strtoumax(text, end, base);
}

int __isoc23_vsscanf(const char *text, const char *format, va_list arguments)
{
    return vsscanf(text, format, arguments);
}

int __isoc23_sscanf(const char *text, const char *format, ...)
{
    va_list arguments;
    int rc;

    va_start(arguments, format);
    rc = vsscanf(text, format, arguments);
    va_end(arguments);

    return rc;
}

int __isoc23_fscanf(FILE *file, const char *format, ...)
{
    va_list arguments;
    int rc;

    va_start(arguments, format);
    rc = vfscanf(file, format, arguments);
    va_end(arguments);

    return rc;
}
