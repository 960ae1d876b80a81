"""The interactive viewer: its server, its page, and the same page as one file.

Nothing heavy is imported here; the web server's packages are an extra, `pip install 'voxplain[viewer]'`.
"""
