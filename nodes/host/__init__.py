"""The adapter: the only package that knows how the host loads, patches and frees things.

Written against ComfyUI 0.3.64 and 0.18.1; names that only some versions have are asked for where
they are used. Nothing is imported here: each node names the modules that it needs, and so needs of
the host only what they do.
"""
