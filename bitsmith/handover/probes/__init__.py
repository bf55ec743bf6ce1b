"""Small programs that run inside the environment of another runtime. They import nothing of bitsmith."""
