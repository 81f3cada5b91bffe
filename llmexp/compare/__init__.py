"""python -m llmexp.compare: runs side by side, as a table and as one HTML file.

* runs      find runs below folders, and read what they left
* paired    is B better than A? From the loss of each validation example
* table     the terminal, Markdown, CSV and JSON
* page      one self-contained HTML file: page.html, page.css and page.js, filled with numbers

Reads run folders, changes nothing in them, and wants neither torch nor a network.
"""
