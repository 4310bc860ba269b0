"""Every operation of `areal_mega.ops` next to what others would run in its place, on the same inputs.

`cases` has what is measured, one file for each family of operations; `peers` the packages of others; `clock` how it
is measured; `limits` what the machine could do at best; `rows` the results, which `table` and `plot` show.
"""
