"""One cell image: decoded safely, measured, and compared with others."""
